"""The text-to-image policy: pictures for every family of diffusers pipelines."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.pipelines.policy import PipelinePolicy, load_pipeline
from polyalign.records.samples import Sample
from polyalign_text_to_image.config import TextToImageConfig
from polyalign_text_to_image.families import FAMILIES
from polyalign_text_to_image.pictures import READING, open_picture, to_pictures, to_pixels

LOADING = {"StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False}}


class TextToImagePolicy(PipelinePolicy):
    """A pipeline that draws square pictures: PIL images, as tensors ``[N, 3, H, W]`` in [0, 1]."""

    families = FAMILIES
    modality = "image"
    reading = READING
    outputs = frozenset({"image"})

    @property
    def resolution(self) -> int:
        """Pixels per side."""
        side: int = self.call_size["height"]
        return side

    def media_size(self, pipeline: Any, network: Any, config: TextToImageConfig) -> tuple[dict[str, Any], tuple[int, ...], int]:
        per_latent = pipeline.vae_scale_factor
        resolution = config.resolution or network.config.sample_size * per_latent
        if resolution % per_latent:
            raise ConfigError(
                f"policy.resolution={resolution} is not a multiple of {per_latent}, "
                "the pixels per latent of this VAE; give one that is"
            )
        side = resolution // per_latent
        return {"height": resolution, "width": resolution}, (network.config.in_channels, side, side), resolution**2

    def read_media(self, sample: Sample) -> Tensor:
        return to_pixels(open_picture(sample), self.resolution)

    def finished(self, decoded: Tensor) -> Tensor:
        return (decoded / 2 + 0.5).clamp(0, 1)

    def outputs_of(self, decoded: Tensor) -> list[Any]:
        return to_pictures(decoded)


def build(config: TextToImageConfig, *, device: str = "cpu", seed: int = 0) -> TextToImagePolicy:
    """Return the policy on ``device``. ``seed`` keys its noise and the first LoRA weights."""
    policy = TextToImagePolicy(load_pipeline(config, FAMILIES, **LOADING), config, seed)
    policy.to(device)
    return policy
