"""The text-to-video policy: clips for every family of diffusers pipelines."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.pipelines.collator import open_media
from polyalign.policies.pipelines.families import family_of
from polyalign.policies.pipelines.policy import PipelinePolicy, load_pipeline
from polyalign.records.samples import Sample
from polyalign_video.text_to_video.config import TextToVideoConfig
from polyalign_video.text_to_video.families import FAMILIES, VideoFamily, compression
from polyalign_video.text_to_video.frames import READING, to_clips, to_pixels


class TextToVideoPolicy(PipelinePolicy):
    """A pipeline that draws clips: `polyalign_video.clip.Clip`, as tensors ``[N, 3, F, H, W]`` in [0, 1]."""

    families = FAMILIES
    modality = "video"
    reading = READING
    outputs = frozenset({"video"})
    config: TextToVideoConfig

    def __init__(self, pipeline: Any, config: TextToVideoConfig, seed: int = 0) -> None:
        super().__init__(pipeline, config, seed)
        self.collator.decisions = self.shape_of_latents[1] if config.per_frame else 1

    def media_size(self, pipeline: Any, network: Any, config: TextToVideoConfig) -> tuple[dict[str, Any], tuple[int, ...], int]:
        time, space = compression(pipeline)
        family = family_of(self.families, type(pipeline).__name__, config.base)
        assert issubclass(family, VideoFamily)
        multiple = math.lcm(space, family.multiple)
        problems = [
            f"policy.{side}={value}, but a {type(pipeline).__name__} wants multiples of {multiple} pixels"
            for side, value in (("height", config.height), ("width", config.width))
            if value % multiple
        ]
        if config.frames % time not in {remainder % time for remainder in family.remainders}:
            fitting = " or ".join(f"{time}n + {remainder}" if remainder else f"{time}n" for remainder in family.remainders)
            problems.append(f"policy.frames={config.frames}, but this VAE makes clips of {fitting} frames")
        if problems:
            raise ConfigError("; ".join(problems) + ": give one that fits")
        shape = (network.config.in_channels, (config.frames - 1) // time + 1, config.height // space, config.width // space)
        size = {"num_frames": config.frames, "height": config.height, "width": config.width}
        return size, shape, config.frames * config.height * config.width

    def read_media(self, sample: Sample) -> Tensor:
        return to_pixels(open_media(sample, "video"), self.config.frames, self.config.height, self.config.width)

    def finished(self, decoded: Tensor) -> Tensor:
        return (decoded / 2 + 0.5).clamp(0, 1)

    def outputs_of(self, decoded: Tensor) -> list[Any]:
        return to_clips(decoded, self.config.fps)


def build(config: TextToVideoConfig, *, device: str = "cpu", seed: int = 0) -> TextToVideoPolicy:
    """Return the policy on ``device``. ``seed`` keys its noise and the first LoRA weights."""
    policy = TextToVideoPolicy(load_pipeline(config, FAMILIES), config, seed)
    policy.to(device)
    return policy
