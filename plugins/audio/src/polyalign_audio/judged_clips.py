"""Clips as rewards meet them."""

from __future__ import annotations

import hashlib

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged
from polyalign_audio.modality import Clip


def clip_of(item: Judged, name: str) -> Clip:
    """Return the response as a clip. Raises `RewardError` for one of another modality."""
    if not isinstance(item.output, Clip):
        raise RewardError(f"reward {name!r} judges sound, but the response is a {type(item.output).__name__}")
    return item.output


def content_key(clip: Clip) -> str:
    """Return a hash of the samples and their rate: equal clips, equal key, whatever file they came from."""
    return hashlib.blake2b(f"{clip.rate} ".encode() + clip.samples.tobytes(), digest_size=16).hexdigest()
