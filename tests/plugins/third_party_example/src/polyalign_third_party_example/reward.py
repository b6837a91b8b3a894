"""A rule that reads the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from polyalign.records.schema import text_of
from polyalign.rewards.base import Judged, Reward


class FollowsPrompt(Reward):
    """Share of steps that go up (or down, if the prompt says so); the first step starts at 0."""

    name = "follows_prompt"

    def __init__(self, config: Any = None) -> None: ...

    def score(self, items: Sequence[Judged]) -> list[float]:
        return [_share(item.output, "down" in text_of(item.prompt[-1].parts).lower().split()) for item in items]


def _share(walk: Sequence[float], down: bool) -> float:
    steps = [after - before for before, after in pairwise([0.0, *walk])]
    return sum((step < 0) if down else (step > 0) for step in steps) / len(steps)
