"""Clips as transformers' processors read them: what `ProcessorEncoder` needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyalign.errors import RecordError
from polyalign.policies.media_kinds import MediaKind
from polyalign_audio.modality import AudioModality, Clip

PROBE_SECONDS = (0.4, 0.6)
RATE = 16_000  # Hz, of nearly every model that listens


def chirp(seconds: float, rate: int, low: float = 200.0, high: float = 900.0) -> Clip:
    """Return a made-up clip whose pitch rises from ``low`` to ``high`` Hz."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (low * time + (high - low) * time**2 / (2 * seconds))
    return Clip((0.3 * np.sin(phase)).astype(np.float32), rate)


class Ears:
    """Opens clips as a feature extractor wants them: at its rate, and no longer than its window, which would be cut silently."""

    def __init__(self, extractor: Any = None) -> None:
        self.codec, self.rate = AudioModality(), int(getattr(extractor, "sampling_rate", RATE))
        self.longest = int(getattr(extractor, "n_samples", 0)) or None

    def samples(self, data: bytes) -> int:
        """Return how many samples the clip has at the extractor's rate, from its header. Raises `RecordError` past the window."""
        seconds = self.codec.seconds(data)
        count = round(seconds * self.rate)
        if self.longest is not None and count > self.longest:
            raise RecordError(
                f"a clip of {seconds:.2f} s is longer than the {self.longest / self.rate:g} s that the model hears; cut it, or "
                "raise policy.seconds where the policy has it"
            )
        return count

    def open(self, data: bytes) -> np.ndarray:
        return self.codec.decode(data).at(self.rate).samples


class Clips(MediaKind):
    """Sound of one channel. Its size is the number of samples at the processor's rate."""

    modality, plural = "audio", "clips"

    def __init__(self, placeholder: str, media_id: int, extractor: Any = None) -> None:
        super().__init__(placeholder, media_id)
        self.ears = Ears(extractor)

    def size(self, data: bytes) -> int:
        return self.ears.samples(data)

    def open(self, data: bytes) -> np.ndarray:
        return self.ears.open(data)

    def probe(self, number: int) -> np.ndarray:
        return chirp(PROBE_SECONDS[number], self.ears.rate).samples

    def blank(self, size: Any) -> np.ndarray:
        return np.zeros(size, dtype=np.float32)

    def arguments(self, media: Sequence[np.ndarray]) -> dict[str, Any]:
        return {"audio": list(media), "sampling_rate": self.ears.rate}
