"""Means, paired gains and win rates with bootstrap intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile-bootstrap interval (95 % unless said otherwise)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Return the mean over prompts and its interval. ``values`` ``[prompts]`` or ``[prompts, samples]``: samples of one
    prompt are not independent, so they are averaged first and prompts are what is resampled (Efron, 1979)."""
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("no values to average")
    per_prompt = array.reshape(len(array), -1).mean(1)
    picks = np.random.default_rng(seed).integers(0, len(per_prompt), (resamples, len(per_prompt)))
    low, high = np.quantile(per_prompt[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(per_prompt.mean()), float(low), float(high))


def bootstrap_means(
    groups: Mapping[str, Sequence[float]],
    statistic: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return a statistic of several groups' means and its interval; each group is resampled within itself.

    ``statistic`` gets means by name, ``[1]`` (the values themselves) or ``[resamples]``, and returns as many numbers.
    """
    generator = np.random.default_rng(seed)
    arrays = {name: np.asarray(values, dtype=float) for name, values in groups.items()}
    drawn = {name: array[generator.integers(0, len(array), (resamples, len(array)))].mean(1) for name, array in arrays.items()}
    low, high = np.quantile(statistic(drawn), [(1 - level) / 2, (1 + level) / 2])
    value = statistic({name: array.mean(keepdims=True) for name, array in arrays.items()})
    return Interval(float(value[0]), float(low), float(high))


def paired_gain(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, *, seed: int = 0) -> Interval:
    """Return mean(after - before) over the same prompts and seeds."""
    return bootstrap(np.asarray(after, dtype=float) - np.asarray(before, dtype=float), seed=seed)


def win_rate(before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, *, seed: int = 0) -> Interval:
    """Return the share of items on which ``after`` scores higher; a tie counts half."""
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    return bootstrap((np.sign(difference) + 1) / 2, seed=seed)
