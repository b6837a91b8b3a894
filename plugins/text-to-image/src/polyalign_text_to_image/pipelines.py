"""What differs between families of text-to-image pipelines: how text is encoded, and how the denoiser is called.

Everything else (caches, noise, scores, LoRA, saving) is the same for all of them and lives in `policy`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.samplers import Grid
from polyalign.policies.schedules import Schedule


class PipelineFamily(ABC):
    """One family. Conditions are named as the pipeline's call names them, so that sampling can pass them on."""

    pipelines: ClassVar[tuple[str, ...]]  # class names, as in model_index.json
    denoiser: ClassVar[str]  # component that is trained; also the prefix of its keys in a LoRA file

    def __init__(self, pixels_per_latent: int) -> None:
        self.pixels_per_latent = pixels_per_latent

    @abstractmethod
    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        """Return named embeddings, batch first. ``length``: tokens of the long text encoder, where there is one."""

    @abstractmethod
    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """Return the prediction for ``noised`` ``[B, C, h, w]``."""


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


FAMILIES: tuple[type[PipelineFamily], ...] = (StableDiffusion, StableDiffusionXL, StableDiffusion3)


def family_of(pipeline_class: str, base: str) -> type[PipelineFamily]:
    """Return the family of a pipeline class name. Raises `ConfigError` listing those that can be aligned."""
    for family in FAMILIES:
        if pipeline_class in family.pipelines:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise ConfigError(f"policy.base={base!r} is a {pipeline_class}; text-to-image can align {known}")


def schedule_of(scheduler: Any, prediction: str = "auto") -> Schedule:
    """Return the training schedule behind a diffusers scheduler, as its configuration gives it before sampling.

    ``prediction`` other than "auto" overrides the scheduler's. Raises `ConfigError` for schedules we do not know.
    """
    fresh = type(scheduler).from_config(scheduler.config)  # sampling overwrites sigmas and timesteps
    if hasattr(fresh, "alphas_cumprod"):
        kind = fresh.config.prediction_type if prediction == "auto" else prediction
        if kind not in ("epsilon", "v_prediction"):
            raise ConfigError(
                f"the scheduler predicts {kind!r}; expected 'epsilon' or 'v_prediction' (policy.prediction sets it)"
            )
        return Schedule.variance_preserving(fresh.alphas_cumprod, kind)
    if "FlowMatch" in type(fresh).__name__:
        if prediction not in ("auto", "flow"):
            raise ConfigError(f"policy.prediction={prediction!r}, but {type(fresh).__name__} is a flow; use 'auto' or 'flow'")
        shift = 1.0 if fresh.config.get("use_dynamic_shifting") else fresh.config.get("shift", 1.0)
        return Schedule.flow(fresh.config.num_train_timesteps, shift)
    raise ConfigError(
        f"{type(fresh).__name__} has neither alphas_cumprod nor flow matching; "
        "use a pipeline with a DDIM-like or FlowMatch scheduler"
    )


def grid_of_scheduler(scheduler: Any, steps: int, latent: tuple[int, ...], network: Any) -> Grid:
    """Return the noise levels at which diffusers itself would draw in so many steps: those of the pipeline's FlowMatch
    scheduler, or of DDIM with the spacing and the last level that the pipeline's scheduler is configured for.

    ``latent``: shape ``(C, h, w)``; ``network``: its configuration, for schedules that shift with the number of patches.
    """
    fresh = type(scheduler).from_config(scheduler.config)
    if "FlowMatch" in type(fresh).__name__:
        more = {}
        if fresh.config.get("use_dynamic_shifting"):
            patches = latent[1] * latent[2] // network.patch_size**2
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            more["mu"] = calculate_shift(patches, *(fresh.config[name] for name in names))
        fresh.set_timesteps(steps, **more)
        noise = fresh.sigmas.double()
        return Grid(tuple((1 - noise).tolist()), tuple(noise.tolist()), tuple(fresh.timesteps.tolist()))
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    kept = torch.cat([ddim.alphas_cumprod[ddim.timesteps], ddim.final_alpha_cumprod.reshape(1)]).double()
    timesteps = tuple(float(timestep) for timestep in ddim.timesteps)
    return Grid(tuple(kept.sqrt().tolist()), tuple((1 - kept).sqrt().tolist()), timesteps)
