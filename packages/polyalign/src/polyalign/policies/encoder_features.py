"""Features of a frozen encoder behind the interface of a policy, so that reward models train on them as on any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.encoders import Encoder, build_encoder
from polyalign.errors import TrainingError
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import EncoderSpec
from polyalign.policies.base import Batch, Collator, Kind, Policy, Rollouts, Scores
from polyalign.policies.encoder_features_config import EncoderFeaturesConfig
from polyalign.policies.feature_cache import FeatureCache
from polyalign.records.atomic import write_text
from polyalign.records.judgements import content_of
from polyalign.records.samples import MediaSource, Sample
from polyalign.records.schema import MediaPart, Message, TextPart, text_of

Parts = tuple[TextPart | MediaPart, ...]


class FeatureCollator(Collator):
    """Samples to features: ``response`` and ``prompt`` ``[N, D]``, each distinct content embedded once.

    What has several parts has the mean of their embeddings: all of its text as one, and each medium. Without a text embedding
    (an encoder of pictures alone) prompts are 0.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.cache = FeatureCache()
        self.width: int | None = None

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        wanted = [(sample.response, sample.media) for sample in samples]
        wanted += [(tuple(part for message in sample.prompt for part in message.parts), sample.media) for sample in samples]
        keys = [json.dumps(content_of(parts)) for parts, _ in wanted]
        new = {key: content for key, content in zip(keys, wanted, strict=True) if self.hashed(key) not in self.cache}
        for key, (parts, media) in new.items():
            self.cache.store(self.hashed(key), {"embedding": self.embedding(parts, media)}, key[:80])
        rows = torch.stack([self.cache.load(self.hashed(key))["embedding"] for key in keys]) if keys else torch.zeros(0, 0)
        count = len(samples)
        return Batch(
            tuple(samples),
            {"response": rows[:count], "prompt": rows[count:]},
            torch.zeros(count, 1, 0, dtype=torch.bool),  # type: ignore[arg-type]
            torch.full((count, 0), int(Kind.TOKEN)),  # type: ignore[arg-type]
            tuple(sample.content_key() for sample in samples),
        )

    @staticmethod
    def hashed(key: str) -> str:
        import hashlib

        return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()

    def embedding(self, parts: Parts, media: MediaSource | None) -> Tensor:
        """Return the mean embedding ``[D]`` of the parts. Raises `TrainingError` for media that nothing opens."""
        rows = []
        if text := text_of(parts).strip():
            rows += list(self._texts(text))
        refs = [part.media for part in parts if isinstance(part, MediaPart)]
        if refs and media is None:
            raise TrainingError(f"{len(refs)} media cannot be opened: these samples carry no media source")
        for ref in refs:
            assert media is not None
            decoded = registry().get("modalities", ref.modality).load()().decode(media.read(ref))
            rows.append(self.encoder.encode_media([decoded])[0])
        if not rows:
            return torch.zeros(self._width())
        return torch.stack([row.float() for row in rows]).mean(0)

    def _texts(self, text: str) -> Tensor:
        """Return the text's embedding as one row, or no row where the encoder has none."""
        if type(self.encoder).encode_text is Encoder.encode_text:
            return torch.zeros(0, 0)
        return self.encoder.encode_text([text])

    def _width(self) -> int:
        if self.width is None:
            raise TrainingError("nothing has been embedded yet, so the width of an empty content is unknown")
        return self.width


class EncoderFeatures(Policy):
    """No generator, no log-probabilities: ``hidden`` is an embedding of the response (and the prompt), ``prompt_hidden`` the
    prompt's. Nothing of it trains; embeddings are kept by content, in memory and, once `prepare` was called, on disk."""

    family: ClassVar[str] = "features"
    inputs = frozenset({"text", "image", "audio", "video"})
    outputs = frozenset[str]()
    provides = frozenset({"hidden", "prompt_hidden"})
    collator: FeatureCollator

    def __init__(self, config: EncoderFeaturesConfig, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.config, self.encoder, self.width = config, encoder, width
        self.collator = FeatureCollator(encoder)
        self.collator.width = width

    @property
    def feature_sizes(self) -> dict[str, int]:
        return {"hidden": self.width * (3 if self.config.features == "interaction" else 1), "prompt_hidden": self.width}

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        if unknown := sorted(want - self.provides):
            raise TrainingError(
                f"features of an encoder have no {', '.join(unknown)}; they give {', '.join(sorted(self.provides))}"
            )
        response, prompt = batch.tensors["response"], batch.tensors["prompt"]
        extras = {}
        if "hidden" in want:
            both = self.config.features == "interaction"
            extras["hidden"] = torch.cat([response, prompt, response * prompt], 1) if both else response
        if "prompt_hidden" in want:
            extras["prompt_hidden"] = prompt
        return Scores(torch.zeros(batch.mask.shape, device=batch.mask.device), batch.mask, batch.kind, extras)

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        raise TrainingError("an encoder generates nothing; set report.prompts: 0")

    def prepare(self, samples: Sequence[Sample], cache: Path, progress: Any = None) -> None:
        """Embed the samples' contents once, into a folder of this encoder's own."""
        self.collator.cache.attach(cache / "encoder-features" / f"{self.encoder.name}-{self.encoder.fingerprint()[:24]}")
        for sample in samples:
            self.collator([sample])

    def save(self, folder: Path) -> None:
        """Write which encoder it is: there are no weights of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(
            folder / "encoder.json", json.dumps({**self.config.model_dump(mode="json"), "fingerprint": self.fingerprint()})
        )

    def fingerprint(self) -> str:
        return self.encoder.fingerprint()


def build(config: EncoderFeaturesConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> EncoderFeatures:
    """Return the encoder's features as a policy. ``device`` and ``seed`` are taken for uniformity: nothing here has weights.

    The width is found by embedding one content: a word, or where the encoder reads none, what `Encoder.width` says.
    """
    encoder = build_encoder(config.encoder)
    policy = EncoderFeatures(config, encoder, width_of(encoder))
    spec = registry().get("encoders", config.encoder.name)
    if isinstance(spec, EncoderSpec) and spec.inputs:  # so that a reward model knows which medium a decoded response is
        policy.inputs = frozenset(spec.inputs)
    return policy


def width_of(encoder: Encoder) -> int:
    """Return how many numbers an embedding has: what the encoder says, else by embedding a word or, where it reads no text, a
    grey picture."""
    if encoder.width is not None:
        return encoder.width
    if type(encoder).encode_text is not Encoder.encode_text:
        return int(encoder.encode_text(["word"]).shape[1])
    from PIL import Image

    return int(encoder.encode_media([Image.new("RGB", (64, 64), "grey")]).shape[1])
