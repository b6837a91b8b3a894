"""How eval-anything adds up (Align-Anything, arXiv 2412.15838). AMU and AMG take numbers, or arrays of resampled ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODALITIES = ("text", "visual", "audio")
PAIRS = ("text-visual", "text-audio", "visual-audio")


def amu(categories: Mapping[str, Any]) -> Any:
    """Return the mean over categories of each one's mean rating, 1 to 10: a large category counts no more than a small one."""
    ratings: list[Any] = list(categories.values())
    return sum(ratings) / len(ratings)


def amg(selection: Any, instruction: Mapping[str, Any], synergy: Mapping[str, Any]) -> Any:
    """Return the sum over `PAIRS` of 1/2 * selection * (instruction_i + instruction_j) * synergy_ij.

    ``selection``: mean share of people who would answer in the modalities chosen, on [0, 1]. ``instruction``: mean score by
    modality, 0 to 10. ``synergy``: mean fit of two modalities by pair, on [0, 1].
    """
    total: Any = 0.0
    for pair in PAIRS:
        first, second = pair.split("-")
        total = total + 0.5 * selection * (instruction[first] + instruction[second]) * synergy[pair]
    return total


def overall(understanding: float, generation: float) -> float:
    """Return the mean of AMU and AMG."""
    return (understanding + generation) / 2
