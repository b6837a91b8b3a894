"""A decoded clip, and which of its frames are looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyalign.randomness import keyed_seed


@dataclass(frozen=True, eq=False)
class Clip:
    """``frames``: uint8 ``[F, H, W, 3]``, RGB. ``fps``: frames per second, the mean where a file's frames last unequally long."""

    frames: np.ndarray
    fps: float

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.frames) / self.fps

    def at(self, numbers: np.ndarray) -> Clip:
        """Return the clip of these frames, at the rate that keeps its duration."""
        return Clip(self.frames[numbers], self.fps * len(numbers) / len(self.frames))


def uniform(total: int, count: int) -> np.ndarray:
    """Return the numbers of ``count`` frames spread evenly over ``total``: the middles of equal stretches; all if there are
    no more than ``count``."""
    count = min(count, total)
    return ((np.arange(count) + 0.5) * total / max(count, 1)).astype(int)


def at_rate(total: int, fps: float, rate: float, limit: int) -> np.ndarray:
    """Return the numbers of frames at ``rate`` frames per second (at most the clip's own ``fps``), evenly spread, at least one
    and at most ``limit``: longer clips are looked at more rarely."""
    return uniform(total, max(1, min(limit, round(total / fps * min(rate, fps)))))


def keyed(total: int, count: int, *key: str | int) -> np.ndarray:
    """Return the numbers of ``count`` frames, one drawn from each of equal stretches (temporal segment networks, Wang et al.
    2016, arXiv 1608.00859): equal keys, equal draws."""
    count = min(count, total)
    edges = np.arange(count + 1) * total // max(count, 1)
    draw = np.random.default_rng(keyed_seed(*key))
    return draw.integers(edges[:-1], edges[1:])
