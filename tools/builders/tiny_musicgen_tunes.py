"""What `zoo:tiny-musicgen` learns from: tunes of a few notes, low or high, rising or falling, slow or fast, on two instruments.

Every note lasts whole frames of the codec (40 ms) and its frequency is a multiple of 25 Hz, so that each frame of a steady note
is one and the same piece of waveform: two small codebooks hold all there is to hear.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

RATE, FRAME, FRAMES = 4000, 160, 32  # Hz; samples; 32 frames are 1.28 s
REGISTERS = {"low": range(150, 276, 25), "high": range(400, 526, 25)}  # Hz
DIRECTIONS = {"rising": 1, "falling": -1}
PACES = {"slow": (7, 8), "fast": (3, 4)}  # frames a note, the last of them silent
INSTRUMENTS = {"flute": (1.0,), "reed": (0.55, 0.35, 0.45)}  # strength of each harmonic
LOUDNESS = 0.6
FADE = np.linspace(1.0, 0.4, 8)  # level of the frames of a note


@dataclass(frozen=True)
class Ask:
    """What a prompt may say of a tune; None: nothing."""

    direction: str | None
    instrument: str | None
    register: str | None
    pace: str | None

    @property
    def prompt(self) -> str:
        """Return the words: "a fast rising tune on a high flute"."""
        before = " ".join(word for word in ("a", self.pace, self.direction, "tune") if word)
        on = " ".join(word for word in ("on a", self.register, self.instrument or "pipe") if word)
        return f"{before} {on}"


def all_asks() -> list[Ask]:
    return [Ask(*words) for words in product(DIRECTIONS, INSTRUMENTS, REGISTERS, PACES)]


def tune(ask: Ask, draw: np.random.Generator) -> np.ndarray:
    """Return a tune as asked, ``[FRAME * FRAMES]`` float32: three or four notes, each at least 25 Hz beside the one before."""
    assert ask.register and ask.direction and ask.pace and ask.instrument
    count = int(draw.integers(3, 5))
    scale = np.array(REGISTERS[ask.register])
    notes = np.sort(draw.choice(scale, count, replace=False))[:: DIRECTIONS[ask.direction]]
    length = int(draw.choice(PACES[ask.pace]))
    frames = [np.zeros(FRAME)] * int(draw.integers(0, 3))
    for hertz in notes:
        frames += [FADE[place] * frame_of(hertz, ask.instrument) for place in range(length - 1)] + [np.zeros(FRAME)]
    frames += [np.zeros(FRAME)] * FRAMES
    return np.concatenate(frames[:FRAMES]).astype(np.float32)


def frame_of(hertz: int, instrument: str) -> np.ndarray:
    """Return one frame of a steady note, ``[FRAME]``."""
    time = np.arange(FRAME) / RATE
    harmonics = INSTRUMENTS[instrument]
    return LOUDNESS * sum(strength * np.sin(2 * np.pi * hertz * (n + 1) * time) for n, strength in enumerate(harmonics))
