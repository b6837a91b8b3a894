"""A reward: (prompt, response) to one number. Higher is better, always."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyalign.records.schema import Message


@dataclass(frozen=True)
class Judged:
    """What a reward sees: the prompt, and the decoded response (text, PIL image, waveform ...)."""

    prompt: tuple[Message, ...]
    output: Any


class Reward(ABC):
    """Scores responses in batches. Deterministic: the same input gives the same number."""

    name: str = "reward"

    @abstractmethod
    def score(self, items: Sequence[Judged]) -> list[float]:
        """Return one finite number per item; higher is better."""
