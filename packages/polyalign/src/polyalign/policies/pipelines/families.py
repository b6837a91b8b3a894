"""What differs between families of diffusers pipelines, whatever they draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.errors import ConfigError


class PipelineFamily(ABC):
    """One family. Conditions are named as the pipeline's call names them, so that sampling can pass them on.

    Latents everywhere in polyalign have the VAE's own layout without the batch, ``[C, ...]``; a family whose denoiser wants
    another one (packed tokens, frames before channels) says so in `to_call`, `from_call` and inside `denoise`.
    """

    pipelines: ClassVar[tuple[str, ...]]  # class names, as in model_index.json
    denoiser: ClassVar[str]  # component that is trained; also the prefix of its keys in a LoRA file
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder",)  # beginnings of the names of the parts that prompts go through
    result: ClassVar[str] = "images"  # where the pipeline's output holds what it drew

    def __init__(self, pipeline: Any) -> None:  # noqa: B027 - most families need to know nothing
        """Keep what `denoise` needs to know of the pipeline. Raises `ConfigError` for variants that cannot be aligned."""

    @abstractmethod
    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        """Return named embeddings, batch first. ``length``: tokens of the long text encoder, where there is one."""

    @abstractmethod
    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """Return the prediction for ``noised`` ``[B, C, ...]``, in its shape."""

    def to_call(self, latents: Tensor, network: Any) -> Tensor:
        """Return latents ``[B, C, ...]`` as the pipeline's own call takes and gives them."""
        return latents

    def from_call(self, latents: Tensor, shape: Sequence[int], network: Any) -> Tensor:
        """Return what the pipeline's own call gave as ``[B, *shape]``, the opposite of `to_call`."""
        return latents

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return what the VAE makes of its own, unscaled latents; keeps the gradient."""
        decoded: Tensor = vae.decode(latents, return_dict=False)[0]
        return decoded

    def patches(self, shape: Sequence[int], network: Any) -> int:
        """Return into how many tokens the denoiser cuts latents of ``shape`` ``(C, ...)``, for schedules that shift with it."""
        raise ConfigError(f"{type(self).__name__} does not say how many patches its latents have; its schedule depends on it")

    def levels(self, steps: int) -> list[float] | None:
        """Return the noise levels, before shifting, that the pipeline's own call asks its flow scheduler for; none: its own."""
        return None


def family_of(families: Sequence[type[PipelineFamily]], pipeline_class: str, base: str) -> type[PipelineFamily]:
    """Return the family of a pipeline class name. Raises `ConfigError` listing those that can be aligned."""
    for family in families:
        if pipeline_class in family.pipelines:
            return family
    known = ", ".join(name for family in families for name in family.pipelines)
    raise ConfigError(f"policy.base={base!r} is a {pipeline_class}; this policy can align {known}")
