"""Batches of the text-to-image policy: which cached features belong to a sample."""

from __future__ import annotations

import hashlib

from polyalign.policies.denoising_collator import DenoisingCollator
from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.schedules import Schedule
from polyalign.records.samples import Sample
from polyalign_text_to_image.config import TextToImageConfig
from polyalign_text_to_image.pictures import caption_of, picture_ref


class TextToImageCollator(DenoisingCollator):
    """Names cached latents by picture and VAE, cached embeddings by caption and text encoders."""

    def __init__(
        self, schedule: Schedule, config: TextToImageConfig, seed: int, resolution: int, fingerprints: tuple[str, str]
    ) -> None:
        super().__init__(FeatureCache(), schedule, config, seed)
        self.resolution = resolution
        self.latent_fingerprint, self.text_fingerprint = fingerprints

    def latent_key(self, sample: Sample) -> str:
        return hash_of("latents", picture_ref(sample).sha256, self.latent_fingerprint)

    def condition_key(self, sample: Sample) -> str:
        return self.caption_key(caption_of(sample.prompt))

    def caption_key(self, caption: str) -> str:
        return hash_of("caption", caption, self.text_fingerprint)

    def blank_key(self) -> str:
        return hash_of("blank", self.text_fingerprint)  # not the empty caption's: some pipelines take zeros instead

    def cost(self, sample: Sample) -> int:
        return self.resolution**2 * self.config.draws


def hash_of(*texts: str) -> str:
    """Return 40 hex digits that name the texts together."""
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=20).hexdigest()
