"""Verifiers of several items at once: what one response says is judged by what the others say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, Reward, text_output
from polyalign.rewards.rules.config import ConsistentOrderConfig, DistinctConfig
from polyalign.rewards.rules.text import has_word, n_grams


class ConsistentOrder(Reward):
    """1 for every member of a group whose answers "first comes before second" can all be true, else 0 for every member.

    Members are items of one ``group`` with different prompts; where prompts have several responses, the k-th responses
    form a group of their own. An answer that says neither, or both, is 0 itself and says nothing about the others.
    Source: ACT, verifiers of several prompts.
    """

    name = "consistent_order"

    def __init__(self, config: ConsistentOrderConfig | None = None) -> None:
        self.config = config or ConsistentOrderConfig()

    def score(self, items: Sequence[Judged]) -> list[float]:
        said = [self._said(item) for item in items]
        values = [0.0] * len(items)
        for members in _sets(items):
            edges = [edge for member in members if (edge := said[member]) is not None]
            for member in members:
                values[member] = float(said[member] is not None and _orderable(edges))
        return values

    def _said(self, item: Judged) -> tuple[Any, Any] | None:
        """Return (earlier, later), or None where the answer does not say."""
        text = text_output(item, self.name)
        missing = [key for key in (self.config.first, self.config.second) if key not in item.conditions]
        if missing or item.group is None:
            lacks = ", ".join([*(f"condition {key!r}" for key in missing), *(["group"] if item.group is None else [])])
            raise RewardError(f"reward {self.name!r} compares records of a group that name two things; this one has no {lacks}")
        before = any(has_word(text, word) for word in self.config.before)
        after = any(has_word(text, word) for word in self.config.after)
        if before == after:
            return None
        pair = (item.conditions[self.config.first], item.conditions[self.config.second])
        return pair if before else (pair[1], pair[0])


def _sets(items: Sequence[Judged]) -> Iterable[list[int]]:
    """Return the members of each group, one response per prompt."""
    seen: dict[Any, int] = {}
    sets: dict[tuple[str | None, int], list[int]] = {}
    for position, item in enumerate(items):
        prompt = (item.group, tuple(item.prompt), tuple(sorted(item.conditions.items(), key=str)))
        number = seen[prompt] = seen.get(prompt, -1) + 1
        sets.setdefault((item.group, number), []).append(position)
    return sets.values()


def _orderable(edges: Sequence[tuple[Any, Any]]) -> bool:
    sorter: TopologicalSorter[Any] = TopologicalSorter()
    for earlier, later in edges:
        if earlier == later:
            return False
        sorter.add(later, earlier)
    try:
        sorter.prepare()
    except CycleError:
        return False
    return True


class Distinct(Reward):
    """The share of a response's runs of n words that none of its siblings has: 1 if it repeats nothing of theirs. A response
    too short to have one scores 0, one without siblings 1."""

    name = "distinct"

    def __init__(self, config: DistinctConfig | None = None) -> None:
        self.config = config or DistinctConfig()

    def score(self, items: Sequence[Judged]) -> list[float]:
        grams = [n_grams(text_output(item, self.name), self.config.n) for item in items]
        groups: dict[Any, list[int]] = {}
        for position, item in enumerate(items):
            groups.setdefault(tuple(item.prompt), []).append(position)
        values = [0.0] * len(items)
        for members in groups.values():
            for member in members:
                others = {gram for other in members if other != member for gram in grams[other]}
                own = grams[member]
                values[member] = sum(gram not in others for gram in own) / len(own) if own else 0.0
        return values
