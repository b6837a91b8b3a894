"""Batches of pipeline policies: which cached features belong to a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from polyalign.errors import MediaError, RecordError
from polyalign.plugins.registry import registry
from polyalign.policies.config import DenoisingConfig
from polyalign.policies.denoising_collator import DenoisingCollator
from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.schedules import Schedule
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, MediaRef, Message, text_of


class PipelineCollator(DenoisingCollator):
    """Names cached latents by media and VAE, cached embeddings by caption and text encoders.

    ``modality``: of the one medium that a response is. ``size``: what a response costs (pixels ...), for budgets.
    """

    def __init__(
        self, schedule: Schedule, config: DenoisingConfig, seed: int, modality: str, size: int, fingerprints: tuple[str, str]
    ) -> None:
        super().__init__(FeatureCache(), schedule, config, seed)
        self.modality, self.size = modality, size
        self.latent_fingerprint, self.text_fingerprint = fingerprints

    def latent_key(self, sample: Sample) -> str:
        return hash_of("latents", media_ref(sample, self.modality).sha256, self.latent_fingerprint)

    def condition_key(self, sample: Sample) -> str:
        return self.caption_key(caption_of(sample.prompt))

    def caption_key(self, caption: str) -> str:
        return hash_of("caption", caption, self.text_fingerprint)

    def blank_key(self) -> str:
        return hash_of("blank", self.text_fingerprint)  # not the empty caption's: some pipelines take zeros instead

    def cost(self, sample: Sample) -> int:
        return self.size * self.config.draws


def caption_of(prompt: Sequence[Message]) -> str:
    """Return the text of the last user message. Raises `RecordError` if there is none."""
    for message in reversed(prompt):
        if message.role == "user":
            return text_of(message.parts)
    raise RecordError("the prompt has no user message, but this model draws from the last one's text; add one")


def media_ref(sample: Sample, modality: str) -> MediaRef:
    """Return the one medium that the response is. Raises `RecordError` if it is not exactly one of this modality."""
    media = [part.media for part in sample.response if isinstance(part, MediaPart)]
    if len(media) != 1 or len(sample.response) != 1 or media[0].modality != modality:
        found = ", ".join(part.media.modality if isinstance(part, MediaPart) else "text" for part in sample.response)
        raise RecordError(f"the response of sample {sample.id!r} is [{found}], but this model needs exactly one {modality}")
    return media[0]


@lru_cache
def codec_of(modality: str) -> Any:
    """Return the registered codec of a modality."""
    return registry().get("modalities", modality).load()()


def open_media(sample: Sample, modality: str) -> Any:
    """Return the response, decoded by the registered codec of its modality. Raises `MediaError` naming the sample."""
    ref = media_ref(sample, modality)
    if sample.media is None:
        raise MediaError(f"sample {sample.id!r} points at {modality} {ref.sha256[:12]}, but its data set has no media store")
    try:
        return codec_of(modality).decode(sample.media.read(ref))
    except MediaError as error:
        raise MediaError(f"sample {sample.id!r}: {error}") from error


def hash_of(*texts: str) -> str:
    """Return 40 hex digits that name the texts together."""
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=20).hexdigest()
