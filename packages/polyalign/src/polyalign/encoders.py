"""Encoders: media or text to embeddings, with embeddings of known content read from a cache.

An encoder is frozen. Plugins subclass `Encoder`; whoever needs one in a recipe calls `build_encoder` on the slot.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from pydantic import ValidationError
from torch import Tensor

from polyalign.errors import ConfigError, PolyalignError
from polyalign.plugins.registry import registry
from polyalign.policies.feature_cache import FeatureCache
from polyalign.training.config import Slot

CHUNK = 256  # contents embedded between two writes to the cache: what a killed run loses at most


class Encoder(ABC):
    """Turns decoded media, text, or both into rows of float32 on the CPU. Deterministic, without gradients.

    ``width``: how many numbers a row has, where that is known beforehand; needed where neither text nor a picture can be embedded
    to find out.
    """

    name: str = "encoder"
    width: int | None = None

    def encode_media(self, media: Sequence[Any]) -> Tensor:
        """Return ``[N, D]``, one row per decoded medium, in order."""
        raise PolyalignError(f"encoder {self.name!r} embeds no media; choose another (`polyalign list encoders`)")

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return ``[N, D]``, one row per text, in order; comparable with `encode_media` where an encoder has both."""
        raise PolyalignError(f"encoder {self.name!r} embeds no text; choose another, such as 'clip' (`polyalign list encoders`)")

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of everything that decides an embedding: architecture, weights, preprocessing."""

    def content_key(self, medium: Any) -> str:
        """Return a hash of one decoded medium's content. Needed only where embeddings are cached."""
        raise PolyalignError(f"encoder {self.name!r} gives no content key, so its embeddings of media cannot be cached")


class CachedEncoder(Encoder):
    """Embeds each distinct content once; with a folder, once for all runs.

    Meant for the fixed content of a data set and for prompts. Freshly generated media do not come back: embed those with
    the encoder itself. The folder's sub-folder carries the fingerprint, so rows of other weights are never read.
    """

    def __init__(self, inner: Encoder, folder: Path | None = None) -> None:
        self.inner, self.name = inner, inner.name
        self.cache = FeatureCache(folder / f"{inner.name}-{inner.fingerprint()[:24]}" if folder else None)

    def encode_media(self, media: Sequence[Any]) -> Tensor:
        keys = [_hash("media", self.inner.content_key(medium)) for medium in media]
        return self._lookup(keys, media, self.inner.encode_media)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return self._lookup([_hash("text", text) for text in texts], texts, self.inner.encode_text)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def content_key(self, medium: Any) -> str:
        return self.inner.content_key(medium)

    def _lookup(self, keys: list[str], contents: Sequence[Any], encode: Callable[[list[Any]], Tensor]) -> Tensor:
        if not keys:
            return encode([])
        missing = {key: content for key, content in zip(keys, contents) if key not in self.cache}
        new = list(missing)
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            for key, row in zip(chunk, encode([missing[key] for key in chunk]), strict=True):
                self.cache.store(key, {"embedding": row}, f"an input of encoder {self.name!r}")
        return torch.stack([self.cache.load(key)["embedding"] for key in keys])


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()


_alive: WeakValueDictionary[str, Encoder] = WeakValueDictionary()


def build_encoder(slot: Slot) -> Encoder:
    """Return the encoder a slot names. Equal slots share one instance for as long as somebody holds it.

    Raises `PluginError` for an unknown name and `ConfigError` for options its configuration class refuses.
    """
    spec = registry().get("encoders", slot.name)
    config_class = spec.load_config()
    try:
        config = config_class.model_validate(slot.options) if config_class else None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"encoder {slot.name!r}: {problems}. Its options: {', '.join(config_class.model_fields)}") from error
    key = f"{spec.target} {json.dumps(config.model_dump(mode='json'), sort_keys=True) if config else ''}"
    encoder: Encoder | None = _alive.get(key)
    if encoder is None:
        target = spec.load()
        encoder = target(config) if config else target()
        _alive[key] = encoder
    return encoder
