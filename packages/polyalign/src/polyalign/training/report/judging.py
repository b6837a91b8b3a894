"""Before and after, judged by rewards and evaluators that training never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyalign.evaluation.base import Evaluator
from polyalign.evaluation.intervals import Interval, bootstrap, paired_gain, win_rate
from polyalign.rewards.base import Reward
from polyalign.training.report.samples import Response


@dataclass(frozen=True)
class Judgement:
    """One judge's numbers over the same prompts and seeds, before and after. ``gain`` is after minus before; a win is the
    better number, which may be the lower one."""

    name: str
    before: Interval
    after: Interval
    gain: Interval
    wins: Interval
    notes: Mapping[str, Any] = field(default_factory=dict)
    before_values: tuple[float, ...] = ()
    after_values: tuple[float, ...] = ()
    better: str = "higher"


def judge(
    before: Sequence[Response],
    after: Sequence[Response],
    samples_per_prompt: int,
    rewards: Mapping[str, Reward],
    evaluators: Sequence[Evaluator],
) -> list[Judgement]:
    """Return one `Judgement` per reward and per verdict of each evaluator; intervals resample prompts."""
    pairs: list[tuple[str, Sequence[float], Sequence[float], Mapping[str, Any], str]] = []
    old, new = [item.judged() for item in before], [item.judged() for item in after]
    for name, reward in rewards.items():
        pairs.append((name, reward.score(old), reward.score(new), {}, "higher"))
    for evaluator in evaluators:
        for old_verdict, new_verdict in zip(evaluator.judge(old), evaluator.judge(new), strict=True):
            pairs.append((old_verdict.name, old_verdict.values, new_verdict.values, new_verdict.notes, new_verdict.better))
    judgements = []
    for name, first, second, notes, better in pairs:
        sign = 1.0 if better == "higher" else -1.0
        a = np.asarray(first, dtype=float).reshape(-1, samples_per_prompt)
        b = np.asarray(second, dtype=float).reshape(-1, samples_per_prompt)
        judgements.append(
            Judgement(
                name,
                bootstrap(a),
                bootstrap(b),
                paired_gain(a, b),
                win_rate(sign * a, sign * b),
                notes,
                tuple(map(float, first)),
                tuple(map(float, second)),
                better,
            )
        )
    return judgements
