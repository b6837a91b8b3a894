"""BCO's running baseline: what it is, when it moves, and that no split of a step can be told from the whole."""

from __future__ import annotations

import math

import pytest
import torch
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of

from polyalign.objectives.base import averaged
from polyalign.objectives.bco import BCO
from polyalign.objectives.config import BCOPairConfig
from polyalign.policies.base import Scores

BETA = 0.5


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def window(*pairs: tuple[float, float]) -> tuple[Scores, Scores]:
    """Log-ratios (better, worse), one decision each."""
    values = [x for both in pairs for x in both]
    return scores_of([[[x]] for x in values]), scores_of([[[0.0]] for _ in values])


def loss(pairs: list[tuple[float, float]], weights: list[float], delta: float) -> float:
    each = [-math.log(sigma(BETA * b - delta)) - math.log(sigma(-(BETA * w - delta))) for b, w in pairs]
    return sum(x * w for x, w in zip(each, weights, strict=True)) / sum(weights)


WINDOWS = [([(1.0, 0.5), (2.0, -1.0)], [1.0, 3.0]), ([(4.0, 3.0)], [2.0]), ([(-1.0, -2.0), (0.0, 0.5)], [0.5, 0.5])]


def test_the_baseline_is_the_mean_over_steps_of_a_steps_weighted_mean_reward():
    """Each window is scored with a baseline that includes it, as in ms-swift and LLaMA-Factory."""
    objective, means = BCO(BCOPairConfig(beta=BETA)).double(), []
    for pairs, weights in WINDOWS:
        means.append(sum(w * BETA * (b + c) / 2 for (b, c), w in zip(pairs, weights, strict=True)) / sum(weights))
        delta = sum(means) / len(means)
        scores, reference = window(*pairs)
        feedback = feedback_of(*(pair(weight=weight) for weight in weights))
        found = loss_of(objective, scores, reference, feedback)
        assert found.item() == pytest.approx(loss(pairs, weights, delta), abs=1e-9)
        expected = [
            side * weight / sum(weights)
            for (b, c), weight in zip(pairs, weights, strict=True)
            for side in (-BETA * sigma(-(BETA * b - delta)), BETA * sigma(BETA * c - delta))
        ]
        assert gradient(found, scores).flatten().tolist() == pytest.approx(expected, abs=1e-9)  # none through the baseline
        objective.observe(averaged(objective.statistics(scores, {"reference": reference}, feedback)))
        assert objective.baseline.item() == pytest.approx(delta, abs=1e-12)
    assert objective.windows.item() == 3


def test_scoring_alone_moves_nothing():
    objective = BCO()
    for _ in range(3):
        loss_of(objective, *window((1.0, 0.5)), feedback_of(pair()))
    assert (objective.baseline.item(), objective.windows.item()) == (0.0, 0)


def test_held_out_data_is_scored_with_the_baseline_of_training():
    objective = BCO(BCOPairConfig(beta=BETA)).double()
    scores, reference = window((1.0, 0.5))
    objective.observe(averaged(objective.statistics(scores, {"reference": reference}, feedback_of(pair()))))
    held_out = [(7.0, 2.0)]
    found = loss_of(objective.eval(), *window(*held_out), feedback_of(pair())).item()
    assert found == pytest.approx(loss(held_out, [1.0], BETA * 0.75), abs=1e-9)


def test_a_step_without_preferences_does_not_count():
    objective = BCO().double()
    scores, reference = window((1.0, 0.5))
    for feedback in (feedback_of(example(2)), feedback_of(pair(weight=0.0))):
        objective.observe(averaged(objective.statistics(scores, {"reference": reference}, feedback)))
        assert (objective.baseline.item(), objective.windows.item()) == (0.0, 0)


def test_weights_below_one_do_not_shrink_the_mean():
    objective = BCO(BCOPairConfig(beta=1.0)).double()
    scores, reference = window((3.0, 1.0))
    objective.observe(averaged(objective.statistics(scores, {"reference": reference}, feedback_of(pair(weight=0.25)))))
    assert objective.baseline.item() == 2.0


def test_draws_share_one_baseline_and_are_averaged_outside_the_link():
    """Rewards of two draws: better 2 and 0, worse 1 and -1; baseline (1 + 0) / 2 = 0.5."""
    scores = scores_of([[[2.0], [0.0]], [[1.0], [-1.0]]])
    found = loss_of(BCO(BCOPairConfig(beta=1.0)), scores, scores_of([[[0.0], [0.0]]] * 2), feedback_of(pair()))
    draws = [-math.log(sigma(b - 0.5)) - math.log(sigma(0.5 - w)) for b, w in ((2.0, 1.0), (0.0, -1.0))]
    assert found.item() == pytest.approx(sum(draws) / 2, abs=1e-9)


def test_the_baseline_is_saved_and_loaded_with_the_objective():
    trained = BCO()
    scores, reference = window((1.0, 0.5))
    trained.observe(averaged(trained.statistics(scores, {"reference": reference}, feedback_of(pair()))))
    resumed = BCO()
    resumed.load_state_dict(trained.state_dict())
    assert set(trained.state_dict()) == {"baseline", "windows"}
    assert (resumed.baseline.item(), resumed.windows.item()) == (trained.baseline.item(), 1)


def test_without_a_baseline_a_step_may_be_split_for_nothing():
    objective = BCO(BCOPairConfig(baseline="none"))
    assert (objective.scope, objective.statistic_names) == ("edge", ())
    assert objective.statistics(*_args()) == {}
    assert (BCO().scope, BCO.statistic_names) == ("batch", ("reward", "compared"))


def _args():
    scores, reference = window((1.0, 0.5))
    return scores, {"reference": reference}, feedback_of(pair())


def test_statistics_carry_no_gradient_and_have_the_declared_names():
    statistics = BCO().statistics(*_args())
    assert tuple(statistics) == BCO.statistic_names
    assert not any(term.sum.requires_grad for term in statistics.values())


def test_a_baseline_far_away_stays_finite():
    objective = BCO(BCOPairConfig(beta=1.0))
    scores, reference = window((1e4, -1e4), (-1e4, 1e4), (1e4, 1e4))
    found = loss_of(objective, scores, reference, feedback_of(pair(), pair(), pair()))
    assert torch.isfinite(found) and torch.isfinite(gradient(found, scores)).all()
