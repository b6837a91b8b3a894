"""Families of text-to-image pipelines: how text is encoded, and how the denoiser is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyalign.policies.pipelines.families import PipelineFamily


class StableDiffusion(PipelineFamily):
    """UNets with one CLIP text encoder (Stable Diffusion 1.x and 2.x)."""

    pipelines = ("StableDiffusionPipeline",)
    denoiser = "unet"

    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        embeddings, _ = pipeline.encode_prompt(captions, device, 1, False)
        return {"prompt_embeds": embeddings}

    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        return network(noised, timesteps, encoder_hidden_states=conditions["prompt_embeds"], return_dict=False)[0]


class StableDiffusionXL(PipelineFamily):
    """UNets with two CLIP text encoders that are told the picture's size (Podell et al. 2023, section 2.2)."""

    pipelines = ("StableDiffusionXLPipeline",)
    denoiser = "unet"

    def __init__(self, pipeline: Any) -> None:
        self.pixels_per_latent: int = pipeline.vae_scale_factor

    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        embeddings, _, pooled, _ = pipeline.encode_prompt(captions, device=device, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeddings, "pooled_prompt_embeds": pooled}

    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        height, width = (side * self.pixels_per_latent for side in noised.shape[-2:])
        size = torch.tensor([height, width, 0, 0, height, width], dtype=noised.dtype, device=noised.device)
        added = {"text_embeds": conditions["pooled_prompt_embeds"], "time_ids": size.expand(len(noised), 6)}
        return network(
            noised, timesteps, encoder_hidden_states=conditions["prompt_embeds"], added_cond_kwargs=added, return_dict=False
        )[0]


class StableDiffusion3(PipelineFamily):
    """Flow transformers with two CLIP encoders and an optional T5 (Stable Diffusion 3 and 3.5)."""

    pipelines = ("StableDiffusion3Pipeline",)
    denoiser = "transformer"

    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        more = {} if length is None else {"max_sequence_length": length}
        embeddings, _, pooled, _ = pipeline.encode_prompt(
            captions, None, None, device=device, do_classifier_free_guidance=False, **more
        )
        return {"prompt_embeds": embeddings, "pooled_prompt_embeds": pooled}

    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        return network(
            hidden_states=noised,
            timestep=timesteps,
            encoder_hidden_states=conditions["prompt_embeds"],
            pooled_projections=conditions["pooled_prompt_embeds"],
            return_dict=False,
        )[0]

    def patches(self, shape: Sequence[int], network: Any) -> int:
        _, height, width = shape
        return int(height * width // network.config.patch_size**2)


FAMILIES: tuple[type[PipelineFamily], ...] = (StableDiffusion, StableDiffusionXL, StableDiffusion3)
