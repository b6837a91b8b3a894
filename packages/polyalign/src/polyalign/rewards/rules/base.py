"""What verifiers have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from polyalign.rewards.base import Judged, Reward, text_output


class Verifier(Reward):
    """A check of one item at a time, on [0, 1]: 1 is kept, 0 is broken."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def score(self, items: Sequence[Judged]) -> list[float]:
        return [float(self.verify(item)) for item in items]

    @abstractmethod
    def verify(self, item: Judged) -> float:
        """Return how far the item keeps the rule."""


class TextVerifier(Verifier):
    """A check of a text. Raises `RewardError` for a response of another modality."""

    def verify(self, item: Judged) -> float:
        return self.verify_text(text_output(item, self.name), item)

    @abstractmethod
    def verify_text(self, text: str, item: Judged) -> float: ...


def within(value: float, minimum: float | None, maximum: float | None) -> bool:
    """Return whether ``minimum <= value <= maximum``; None is no limit."""
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)
