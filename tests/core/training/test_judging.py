"""Judges before and after: gains are plain differences, wins go to the better number."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from polyalign.evaluation.base import Evaluator, Verdict
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign.training.report.judging import judge
from polyalign.training.report.samples import Response


class Length(Evaluator):
    def __init__(self, better: str) -> None:
        self.better = better

    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        return [Verdict("length", tuple(float(len(item.output)) for item in items), better=self.better)]  # type: ignore[arg-type]


def said(*texts: str) -> list[Response]:
    prompt = (Message(role="user", parts="?"),)  # type: ignore[arg-type]
    return [Response(prompt, text, text, None, None) for text in texts]


@pytest.mark.parametrize(("better", "wins"), [("higher", 2.5 / 4), ("lower", 1.5 / 4)])
def test_a_win_is_the_better_number(better: str, wins: float) -> None:
    """Lengths 1, 2, 3, 4 become 2, 1, 3, 5: two longer, one shorter, one tie (half a win)."""
    (verdict,) = judge(said("a", "bb", "ccc", "dddd"), said("aa", "b", "ccc", "ddddd"), 1, {}, [Length(better)])
    assert verdict.gain.mean == pytest.approx(0.25)
    assert verdict.wins.mean == pytest.approx(wins)
    assert verdict.better == better
