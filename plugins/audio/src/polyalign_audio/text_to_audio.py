"""The `text-to-audio` policy: clips by every family of denoising text-to-audio pipelines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyalign.policies.pipelines.collator import open_media
from polyalign.policies.pipelines.families import family_of
from polyalign.policies.pipelines.policy import PipelinePolicy, load_pipeline
from polyalign.records.samples import Sample
from polyalign_audio.generation_config import TextToAudioConfig
from polyalign_audio.modality import Clip
from polyalign_audio.pipeline_families import FAMILIES, AudioFamily


class TextToAudioPolicy(PipelinePolicy):
    """A pipeline that makes sound: `Clip`s, as tensors ``[N, S]`` in [-1, 1], all of one length."""

    families = FAMILIES
    modality = "audio"
    reading = "resampled, one channel, padded with silence or cut"
    outputs = frozenset({"audio"})
    provides = frozenset({"log_probs", "predictions"})  # sample_grad would be for rewards of sound that have a gradient: none yet
    family_of_pipeline: AudioFamily

    def __init__(self, pipeline: Any, config: TextToAudioConfig, seed: int = 0) -> None:
        super().__init__(pipeline, config, seed)
        self.family_of_pipeline.seconds = self.family_of_pipeline.seconds_of(pipeline, config.seconds)

    def media_size(self, pipeline: Any, network: Any, config: TextToAudioConfig) -> tuple[dict[str, Any], tuple[int, ...], int]:
        family = family_of(FAMILIES, type(pipeline).__name__, config.base)
        assert issubclass(family, AudioFamily)
        seconds = family.seconds_of(pipeline, config.seconds)
        call, shape = family.sizes(pipeline, seconds)
        return call, shape, round(seconds * 1000)

    def read_media(self, sample: Sample) -> Tensor:
        clip: Clip = open_media(sample, "audio")
        return self.family_of_pipeline.to_vae(torch.from_numpy(clip.at(self.family_of_pipeline.rate).samples))

    def finished(self, decoded: Tensor) -> Tensor:
        return self.family_of_pipeline.to_sound(decoded).clamp(-1, 1)

    def outputs_of(self, decoded: Tensor) -> list[Any]:
        return [Clip(sound.detach().float().cpu().numpy(), self.family_of_pipeline.rate) for sound in decoded]


def build(config: TextToAudioConfig, *, device: str = "cpu", seed: int = 0) -> TextToAudioPolicy:
    """Return the policy on ``device``. ``seed`` keys its noise and the first LoRA weights."""
    policy = TextToAudioPolicy(load_pipeline(config, FAMILIES), config, seed)
    policy.to(device)
    return policy
