"""An evaluator: a judge's view of what a policy made, each number with its interval."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from polyalign.rewards.base import Judged


@dataclass(frozen=True)
class Verdict:
    """One number per judged item (so that models can be compared in pairs), and what the judge says of itself."""

    name: str
    values: tuple[float, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    better: Literal["higher", "lower"] = "higher"


class Evaluator(ABC):
    """Judges outputs after training; never used as a training signal in the same run."""

    @abstractmethod
    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        """Return one or more verdicts over the items, in their order."""
