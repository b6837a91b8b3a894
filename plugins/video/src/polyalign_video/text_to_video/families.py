"""Families of text-to-video pipelines: how text is encoded, and how the denoiser is called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.pipelines.families import PipelineFamily


class VideoFamily(PipelineFamily):
    """Latents are ``[C, F, h, w]``, F the frames that the VAE joins ``time`` of into one."""

    denoiser = "transformer"
    result = "frames"
    remainders: ClassVar[tuple[int, ...]] = (1,)  # of the number of frames, by ``time``, that the VAE gives back unchanged
    multiple: ClassVar[int]  # of pixels a side, that the pipeline's own call insists on

    def __init__(self, pipeline: Any) -> None:
        self.time, self.space = compression(pipeline)


class Wan(VideoFamily):
    """Wan 2.1 (arXiv 2503.20314): a flow transformer with UMT5 text and a causal VAE."""

    pipelines = ("WanPipeline",)
    multiple = 16

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        if getattr(pipeline, "transformer_2", None) is not None or pipeline.config.get("expand_timesteps"):
            raise ConfigError(
                "this Wan pipeline has two denoisers, or a timestep per frame (Wan 2.2); only Wan 2.1's layout can be aligned"
            )

    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        more = {} if length is None else {"max_sequence_length": length}
        embeddings, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, device=device, **more)
        return {"prompt_embeds": embeddings}

    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        return network(
            hidden_states=noised, timestep=timesteps, encoder_hidden_states=conditions["prompt_embeds"], return_dict=False
        )[0]


class CogVideoX(VideoFamily):
    """CogVideoX (arXiv 2408.06072): predicts v, and wants frames before channels."""

    pipelines = ("CogVideoXPipeline",)
    multiple = 8
    remainders = (0, 1)

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        if pipeline.transformer.config.patch_size_t is not None:
            raise ConfigError("CogVideoX 1.5 joins frames inside its denoiser, which is not supported; use a CogVideoX 1.0 model")

    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        more = {} if length is None else {"max_sequence_length": length}
        embeddings, _ = pipeline.encode_prompt(captions, None, False, device=device, **more)
        return {"prompt_embeds": embeddings}

    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        _, _, frames, height, width = noised.shape
        rotary = self._rotary(network, frames, height, width, noised.device)
        predicted = network(
            hidden_states=self.to_call(noised, network),
            encoder_hidden_states=conditions["prompt_embeds"],
            timestep=timesteps,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return self.to_call(predicted, network)

    def _rotary(self, network: Any, frames: int, height: int, width: int, device: torch.device) -> Any:
        if not network.config.use_rotary_positional_embeddings:
            return None
        from diffusers import CogVideoXPipeline

        about = SimpleNamespace(vae_scale_factor_spatial=self.space, transformer=network)
        return CogVideoXPipeline._prepare_rotary_positional_embeddings(
            about, height * self.space, width * self.space, frames, device
        )

    def to_call(self, latents: Tensor, network: Any) -> Tensor:
        return latents.transpose(1, 2)

    def from_call(self, latents: Tensor, shape: Sequence[int], network: Any) -> Tensor:
        return latents.transpose(1, 2)


class LTX(VideoFamily):
    """LTX-Video (arXiv 2501.00103): a flow transformer on packed tokens, with T5 text and its mask."""

    pipelines = ("LTXPipeline",)
    multiple = 32
    frame_rate = 25  # what the pipeline's call assumes, unless told; places in time are in seconds

    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        more = {} if length is None else {"max_sequence_length": length}
        embeddings, mask, _, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, device=device, **more)
        return {"prompt_embeds": embeddings, "prompt_attention_mask": mask}

    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        frames, height, width = noised.shape[2:]
        predicted = network(
            hidden_states=self.to_call(noised, network),
            encoder_hidden_states=conditions["prompt_embeds"],
            timestep=timesteps,
            encoder_attention_mask=conditions["prompt_attention_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.time / self.frame_rate, self.space, self.space),
            return_dict=False,
        )[0]
        return self.from_call(predicted, noised.shape[1:], network)

    def to_call(self, latents: Tensor, network: Any) -> Tensor:
        return latents.flatten(2).transpose(1, 2)  # [B, F * h * w, C]: patches of one latent, as every LTX has them

    def from_call(self, latents: Tensor, shape: Sequence[int], network: Any) -> Tensor:
        return latents.transpose(1, 2).unflatten(2, tuple(shape[1:]))

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        told = torch.zeros(len(latents), device=latents.device) if vae.config.timestep_conditioning else None
        decoded: Tensor = vae.decode(latents, told, return_dict=False)[0]
        return decoded

    def patches(self, shape: Sequence[int], network: Any) -> int:
        return math.prod(shape[1:])

    def levels(self, steps: int) -> list[float] | None:
        return torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()


FAMILIES: tuple[type[VideoFamily], ...] = (Wan, CogVideoX, LTX)


def compression(pipeline: Any) -> tuple[int, int]:
    """Return how many frames, and how many pixels a side, the VAE makes one latent of."""
    if hasattr(pipeline, "vae_temporal_compression_ratio"):
        return pipeline.vae_temporal_compression_ratio, pipeline.vae_spatial_compression_ratio
    return pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial
