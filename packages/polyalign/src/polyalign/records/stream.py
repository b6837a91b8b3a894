"""An endless order over several sources that is a pure function of (seed, position)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from polyalign.randomness import keyed_seed


def turn(position: int, weights: Sequence[Fraction]) -> tuple[int, int]:
    """Return (source, how often it had its turn before ``position``): sources take turns in proportion to their weights.

    Source 0 takes its share of all positions, evenly spaced; source 1 its share of the rest, and so on. So every count
    can be computed without walking the stream, and stays within one of the exact share at each level.
    """
    total = sum(weights)
    for source, weight in enumerate(weights[:-1]):
        share = weight / total
        before, after = int(position * share), int((position + 1) * share)
        if after > before:
            return source, before
        position -= before
        total -= weight
    return len(weights) - 1, position


@lru_cache(maxsize=16)
def shuffled(size: int, *key: str | int) -> np.ndarray:
    """Return the keyed permutation of ``range(size)``. Raw generator words are sorted: they are stable over numpy versions."""
    words = np.random.PCG64(keyed_seed(*key)).random_raw(size)
    return np.argsort(words, kind="stable")
