"""The worlds that proofs are tried in: what they call right is right, and their votes are votes."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

PROOFS = Path(__file__).parents[2] / "tools" / "proofs"


@pytest.fixture(autouse=True)
def _beside_the_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROOFS))
    for name in ("animals", "bandit", "carrying", "easy_to_hard", "ledger"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_careful_solutions_are_right_and_a_forgotten_carry_costs_ten() -> None:
    """7 + 8 + 5 = 20; who forgets every carry writes 7 + 8 = 5 and 5 + 5 = 0, each 10 short of the line before plus the digit."""
    from carrying import Addition, answer_of

    problem = Addition((7, 8, 5))
    careful, careless = (problem.written(random.Random(0), forgets) for forgets in (0.0, 1.0))
    assert (careful, careless) == ("b8=15\nc5=20", "b8=5\nc5=0")
    assert problem.judged(careful) == [True, True] and problem.judged(careless) == [False, False]
    assert answer_of(careful) == str(problem.answer) and problem.text == "a7b8c5\n"


@pytest.mark.parametrize(
    ("solution", "labels"),
    [
        ("b8=5\nc5=10", [False, True]),  # the second line adds up from the first
        ("b8=15\nc4=19", [True, False]),  # not the next number
        ("c5=12\nb8=20", [False, False]),
        ("b8=15\nc5=20\nd1=21", [True, True, False]),  # there is no fourth number
        ("b8=x\nc5=20", [False, False]),
        ("", []),
    ],
)
def test_lines_are_judged_one_by_one(solution: str, labels: list[bool]) -> None:
    from carrying import Addition

    assert Addition((7, 8, 5)).judged(solution) == labels


def test_equal_weights_are_a_majority_vote_and_the_best_is_the_highest() -> None:
    from easy_to_hard import best, voted

    draw = random.Random(3)
    for _ in range(100):
        answers = [str(draw.randint(0, 3)) for _ in range(9)]
        assert Counter(answers)[voted(answers, [1.0] * 9)] == max(Counter(answers).values())
    assert voted(["1", "2", "2"], [0.9, 0.3, 0.3]) == "1"
    assert best(["1", "2", "3"], np.array([0.1, 0.7, 0.2])) == "2"


def test_levels_of_training_and_test_problems_are_apart() -> None:
    from carrying import EASY, HARD, problems

    assert not set(EASY) & set(HARD)
    hard = problems(HARD, 50, "hard test")
    assert {problem.level for problem in hard} == set(HARD) and len(set(hard)) == 50


def test_a_table_is_placed_exactly() -> None:
    """KL and mean reward against sums over all 50 answers, by hand."""
    from bandit import Table, World

    world = World.of(0)
    policy = Table(2 * world.reference)
    p, q = torch.softmax(2 * world.reference, -1), torch.softmax(world.reference, -1)
    kl, gold = world.place(policy)
    assert kl == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert gold == pytest.approx(float((p * world.gold).sum()), rel=1e-5)
    assert world.place(Table(world.reference))[0] == pytest.approx(0.0, abs=1e-6)


def test_labelled_pairs_follow_the_gold_reward() -> None:
    """Of 2000 pairs, the share in which the worthier answer won is the mean of sigma(difference), within 4 standard errors."""
    from bandit import World

    world = World.of(1)
    gaps = []
    for example in world.pairs(2000, 0):
        better, worse = (int(sample.response[0].text) for sample in example.samples)  # type: ignore[union-attr]
        gaps.append(float(world.gold[better] - world.gold[worse]))
    expected = np.mean([1 / (1 + np.exp(-abs(gap))) for gap in gaps])
    assert abs(np.mean([gap > 0 for gap in gaps]) - expected) < 4 * 0.5 / 2000**0.5
