"""The two judges: scores of single responses, and rankings among the responses to one prompt."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, Reward, Scored
from polyalign.rewards.judge.client import ChatClient, Question
from polyalign.rewards.judge.config import JudgeConfig, JudgeRankerConfig, JudgingConfig
from polyalign.rewards.judge.conversation import (
    COMPARING,
    REMINDER,
    SCORING,
    comparing_messages,
    read_score,
    read_verdict,
    scoring_messages,
)

log = logging.getLogger(__name__)
Read = TypeVar("Read")
WIN, TIE = 1.0, 0.5


class Judge(Reward):
    """A model's score of each response, brought from its scale to [0, 1]; with several aspects, the mean of theirs."""

    name = "judge"

    def __init__(self, config: JudgeConfig, client: ChatClient | None = None) -> None:
        self.config, self.client = config, client or ChatClient(config)

    def score(self, items: Sequence[Judged]) -> list[float]:
        return self.evaluate(items).values

    def evaluate(self, items: Sequence[Judged]) -> Scored:
        low, high = self.config.lowest, self.config.highest
        aspects = self.config.aspects or {"": self.config.criteria}
        instructions = self.config.instructions or SCORING
        asked = [scoring_messages(item, instructions, criteria, low, high) for criteria in aspects.values() for item in items]
        scores = readable(self.client, self.config, asked, lambda reply: read_score(reply, low, high))
        if not items:
            return Scored([])
        values = [self._value(score) for score in scores]
        rows = [values[start : start + len(items)] for start in range(0, len(values), len(items))]
        means = [sum(row) / len(aspects) for row in zip(*rows, strict=True)]
        return Scored(means, dict(zip(aspects, rows, strict=True)) if self.config.aspects else {})

    def _value(self, score: float | None) -> float:
        if score is None:
            assert self.config.unreadable is not None
            return self.config.unreadable
        return (score - self.config.lowest) / (self.config.highest - self.config.lowest)


class JudgeRanker(Reward):
    """The share of its comparisons that a response wins, ties counting half, among the responses to its prompt.

    Every pair is shown in both orders. A verdict that changes with the order is a tie (Zheng et al. 2023, arXiv
    2306.05685, section 3.4); of several votes the majority counts, and without one it is a tie.
    """

    name = "judge_ranker"

    def __init__(self, config: JudgeRankerConfig, client: ChatClient | None = None) -> None:
        self.config, self.client = config, client or ChatClient(config)

    def score(self, items: Sequence[Judged]) -> list[float]:
        groups: dict[Any, list[int]] = {}
        for position, item in enumerate(items):
            groups.setdefault(tuple(item.prompt), []).append(position)
        alone = [position for members in groups.values() if len(members) == 1 for position in members]
        if alone:
            raise RewardError(
                f"reward 'judge_ranker' compares responses to one prompt, but item {alone[0]} is the only one to its "
                "prompt; draw several samples per prompt, or use judge"
            )
        pairs = [pair for members in groups.values() for pair in self._pairs(members)]
        points = self.compare([(items[first], items[second]) for first, second in pairs])
        won, played = [0.0] * len(items), [0] * len(items)
        for (first, second), point in zip(pairs, points, strict=True):
            won[first] += point
            won[second] += WIN - point
            played[first] += 1
            played[second] += 1
        return [share / count for share, count in zip(won, played, strict=True)]

    def _pairs(self, members: list[int]) -> list[tuple[int, int]]:
        """Return which positions meet: each with the next ``opponents`` around the circle, each pair once."""
        reach = min(self.config.opponents or len(members), len(members) - 1)
        met = {
            tuple(sorted((members[at], members[(at + step) % len(members)])))
            for at in range(len(members))
            for step in range(1, reach + 1)
        }
        return [(first, second) for first, second in sorted(met)]

    def compare(self, pairs: Sequence[tuple[Judged, Judged]]) -> list[float]:
        """Return for each pair 1 if the first is better, 0 if the second is, 0.5 for a tie."""
        votes, instructions = range(self.config.votes), self.config.instructions or COMPARING
        orders = [order for pair in pairs for order in (pair, pair[::-1])]
        asked = [comparing_messages(*order, instructions, self.config.criteria) for order in orders for _ in votes]
        numbers = [vote for _ in orders for vote in votes]
        verdicts = readable(self.client, self.config, asked, read_verdict, numbers)
        points, size = [], self.config.votes
        for start in range(0, len(verdicts), 2 * size):
            shown, swapped = verdicts[start : start + size], verdicts[start + size : start + 2 * size]
            points.append(self._majority([self._agreed(*both) for both in zip(shown, swapped, strict=True)]))
        return points

    def _agreed(self, shown: str | None, swapped: str | None) -> float:
        """Return the point of the first response, by one verdict in each order."""
        if shown is None or swapped is None:
            assert self.config.unreadable is not None
            return self.config.unreadable
        if (shown, swapped) == ("A", "B"):
            return WIN
        return 0.0 if (shown, swapped) == ("B", "A") else TIE

    def _majority(self, points: Sequence[float]) -> float:
        point, count = Counter(points).most_common(1)[0]
        return point if 2 * count > len(points) else TIE


def readable(
    client: ChatClient,
    config: JudgingConfig,
    asked: Sequence[tuple[dict[str, Any], ...]],
    read: Callable[[str], Read | None],
    numbers: Sequence[int] | None = None,
) -> list[Read | None]:
    """Return what was read of each reply, asking again where one cannot be read.

    Raises `RewardError` for what stays unreadable, unless the configuration has a value for it; then None stands there.
    """
    found: list[Read | None] = [None] * len(asked)
    waiting = list(range(len(asked)))
    messages = list(asked)
    reply = ""
    for _ in range(config.attempts):
        replies = client.ask([Question(messages[at], numbers[at] if numbers else 0) for at in waiting])
        for at, reply in zip(waiting, replies, strict=True):
            found[at] = read(reply)
            messages[at] = (*messages[at], {"role": "assistant", "content": reply}, {"role": "user", "content": REMINDER})
        unread = {at: reply for at, reply in zip(waiting, replies, strict=True) if found[at] is None}
        waiting = list(unread)
        if not waiting:
            return found
    if config.unreadable is None:
        shown = unread[waiting[0]]
        raise RewardError(
            f"{len(waiting)} of {len(asked)} replies of the judge {config.model!r} could not be read in "
            f"{config.attempts} attempts; the first ends with {shown[-200:]!r}. Take a stronger model, or set unreadable"
        )
    log.warning("judge: %d of %d replies could not be read and count as %g", len(waiting), len(asked), config.unreadable)
    return found
