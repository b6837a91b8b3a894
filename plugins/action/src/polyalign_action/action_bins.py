"""Numbers as words of a vocabulary: what an agent does and sees as tokens, and what it did read back from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from polyalign_action.environments import Spaces

MU, LARGEST = 100.0, 256.0  # of the curve that observations are bent by


class ActionBins:
    """Each number of an action is one of ``count`` bins of equal width between ``low`` and ``high``; what lies outside goes into
    the last ones. A bin is read back as its middle. Discrete actions are their own bins.

    Sources: RT-2 (Brohan et al. 2023, arXiv 2307.15818), 256 bins per dimension; OpenVLA (Kim et al. 2024, arXiv 2406.09246),
    which takes the 1 % and 99 % quantiles of its data for the ends: `quantile_range`.
    """

    def __init__(self, spaces: Spaces, count: int, low: Sequence[float] = (), high: Sequence[float] = ()) -> None:
        self.spaces = spaces
        self.count = spaces.actions if spaces.discrete else count
        self.low, self.high = (np.asarray(ends, np.float64) for ends in (low or spaces.low, high or spaces.high))

    @property
    def per_step(self) -> int:
        """Return how many bins one action takes."""
        return 1 if self.spaces.discrete else self.spaces.actions

    def of(self, actions: np.ndarray) -> np.ndarray:
        """Return the bins ``[T, A]`` of actions ``[T]`` or ``[T, A]``."""
        if self.spaces.discrete:
            return (actions - self.spaces.first)[:, None]
        share = (actions.astype(np.float64) - self.low) / (self.high - self.low)
        return np.clip(np.floor(share * self.count), 0, self.count - 1).astype(np.int64)

    def middle(self, bins: np.ndarray) -> np.ndarray:
        """Return the actions that bins ``[T, A]`` stand for: indices from 0 ``[T]``, or numbers ``[T, A]``."""
        if self.spaces.discrete:
            return bins[:, 0]
        return (self.low + (bins + 0.5) / self.count * (self.high - self.low)).astype(np.float32)


def quantile_range(actions: np.ndarray, tail: float = 0.01) -> tuple[list[float], list[float]]:
    """Return the ends (low, high) of bins for actions ``[T, A]``: all but a share ``tail`` of each number on each side."""
    low, high = np.quantile(actions, [tail, 1 - tail], axis=0)
    return low.tolist(), high.tolist()


def observation_bins(observations: np.ndarray, count: int) -> np.ndarray:
    """Return observations ``[T, O]`` of any size as bins ``[T, O]``: finer near 0. Nothing is fitted to data.

    The mu-law of Gato (Reed et al. 2022, arXiv 2205.06175, section 2.1; mu 100, M 256), then bins of equal width.
    """
    bent = np.sign(observations) * np.log1p(MU * np.abs(observations)) / math.log1p(MU * LARGEST)
    return np.clip(np.floor((np.clip(bent, -1, 1) + 1) / 2 * count), 0, count - 1).astype(np.int64)
