"""What moves in a clip, how far and which way, measured from the pixels.

The background is the colour of the border (its median over all frames); what differs from it is the thing that moves. Good
for clips of one thing before a plain background, such as those of `moving-emoji`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from polyalign_video.clip import Clip

MOVES = {  # a move's name: the words that name it in prompts and answers
    "left": "moves left", "right": "moves right", "up": "moves up", "down": "moves down", "grows": "grows",
    "shrinks": "shrinks", "still": "stays still",
}  # fmt: skip
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "grows": "shrinks", "shrinks": "grows"}
FAINT = 0.08  # difference from the background, on [0, 1], below which a pixel belongs to it
STILL = 0.02  # a path shorter than this share of the side, or of the size, is no move


@dataclass(frozen=True)
class Track:
    """Where the thing is in each frame: ``x`` to the right, ``y`` upwards, in shares of the clip's sides, and ``size``, the
    logarithm of its diameter. Each ``[F]``; frames that show nothing repeat their neighbours."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray

    def along(self, move: str) -> np.ndarray:
        """Return the coordinate ``[F]`` that the move makes rise."""
        return {"left": -self.x, "right": self.x, "up": self.y, "down": -self.y, "grows": self.size, "shrinks": -self.size}[move]

    @property
    def path(self) -> float:
        """Length of the way through all frames: places and size together."""
        return float(np.abs(np.diff(np.stack([self.x, self.y, self.size]), axis=1)).sum())


def track(clip: Clip) -> Track | None:
    """Return the track of the thing in the clip; None where no frame shows one."""
    frames = clip.frames.astype(np.float32) / 255
    border = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], 1)  # [F, B, 3]
    weight = np.abs(frames - np.median(border, (0, 1))).mean(-1)  # [F, H, W]
    weight = np.where(weight > FAINT, weight, 0)
    mass = weight.sum((1, 2))
    seen = np.flatnonzero(mass > 0)
    if not len(seen):
        return None
    height, width = weight.shape[1:]
    x = (weight.sum(1) @ ((np.arange(width) + 0.5) / width))[seen] / mass[seen]
    y = 1 - (weight.sum(2) @ ((np.arange(height) + 0.5) / height))[seen] / mass[seen]
    area = (weight > 0).sum((1, 2))[seen]
    every = np.arange(len(frames))
    return Track(*(np.interp(every, seen, values) for values in (x, y, np.log(area) / 2)))


def progress(clip: Clip, move: str, least: float) -> float:
    """Return how far the clip makes a move, from 0 to 1: 1 for a straight way of at least ``least``.

    ``least``: in shares of the side; for size, of the logarithm of the diameter. The net way is held against ``least``, and
    against the way through all frames: detours (shuffled frames, a sideways drift) cost. "still": 1 where nothing moves.
    """
    found = track(clip)
    if found is None:
        return 0.0
    if move == "still":
        return float(np.clip(1 - found.path / least, 0, 1))
    way = found.along(move)
    net = float(way[-1] - way[0])
    return float(np.clip(net / least, 0, 1)) * max(0.0, net) / max(found.path, net, STILL)


def move_of(clip: Clip, least: float = 0.15) -> str:
    """Return the name of the move that the clip makes most of, or "still"."""
    best = max(OPPOSITE, key=lambda move: progress(clip, move, least))
    return best if progress(clip, best, least) > STILL / least else "still"


def amount(clip: Clip) -> float:
    """Return the mean absolute difference of neighbouring frames, pixels on [0, 1]."""
    frames = clip.frames.astype(np.float32) / 255
    return float(np.abs(np.diff(frames, axis=0)).mean()) if len(frames) > 1 else 0.0


def named_in(text: str) -> str | None:
    """Return the move that a text names first, or None."""
    found = [(hit.start(), move) for move, words in MOVES.items() if (hit := re.search(rf"\b{words}\b", text.lower()))]
    return min(found)[1] if found else None
