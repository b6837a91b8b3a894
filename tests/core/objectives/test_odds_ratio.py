"""ORPO against its formula, and its logarithms where float arithmetic is hard."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of, terms_of

from polyalign.objectives.config import ORPOConfig
from polyalign.objectives.odds_ratio import ORPO, log1mexp, log_odds
from polyalign.records.samples import Edge

POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]]]  # mean log-probabilities -1.5 and -1.0


def odds(log_p: float) -> float:
    return math.exp(log_p) / (1 - math.exp(log_p))


def test_value_and_gradient_equal_the_closed_form():
    """NLL of the better response 3/2; odds-ratio term -log(o / (1 + o)), o = odds(-1.5) / odds(-1)."""
    weight = 0.4
    scores = scores_of(POLICY)
    loss = loss_of(ORPO(ORPOConfig(odds_weight=weight)), scores, None, feedback_of(pair()))
    ratio = odds(-1.5) / odds(-1.0)
    assert loss.item() == pytest.approx(1.5 - weight * math.log(ratio / (1 + ratio)), abs=1e-9)
    # d log_odds / d log_p = 1 / (1 - p), and d -log sigma(z) / dz = -sigma(-z) = -1 / (1 + ratio).
    better = -1 / 2 - weight / (1 + ratio) / (1 - math.exp(-1.5)) / 2
    worse = weight / (1 + ratio) / (1 - math.exp(-1.0)) / 3
    expected = torch.tensor([[[better, better, 0.0]], [[worse] * 3]], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, scores), expected, atol=1e-9, rtol=0)


def test_first_term_is_a_mean_over_decisions_of_better_responses_by_edge_weight():
    """Better responses: 2 decisions costing 3 (weight 2), 1 decision costing 6 (weight 1): (2*3 + 6) / (2*2 + 1) = 2.4."""
    scores = scores_of([*POLICY, [[-6.0]], [[-1.0]]])
    terms = terms_of(ORPO(), scores, None, feedback_of(pair(weight=2.0), pair()))
    assert (terms["nll"].sum / terms["nll"].weight).item() == pytest.approx(2.4, abs=1e-9)
    assert terms["odds_ratio"].weight.item() == 3.0


def test_a_response_that_wins_twice_counts_twice():
    scores = scores_of([*POLICY, [[-9.0]]])
    terms = terms_of(ORPO(), scores, None, feedback_of(example(3, [Edge(0, 1), Edge(0, 2)])))
    assert (terms["nll"].sum.item(), terms["nll"].weight.item()) == (6.0, 4.0)


@pytest.mark.parametrize("x", [-1e-12, -1e-6, -0.1, -math.log(2), -1.0, -30.0, -700.0])
def test_log1mexp_is_accurate_at_both_ends(x: float):
    """Oracle: exp by its series in exact fractions for small arguments, log1p(-exp(x)) for large ones."""
    if x > -0.2:
        term, total = Fraction(1), Fraction(0)
        for k in range(1, 30):
            term = term * Fraction(x) / k
            total += term  # expm1(x), exactly
        expected = math.log(float(-total))
    else:
        expected = math.log1p(-math.exp(x))
    assert log1mexp(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_gradients_stay_finite_for_certain_and_for_hopeless_responses():
    scores = scores_of([[[0.0]], [[-800.0]], [[-1e-9]], [[-1e-9]]])
    loss = loss_of(ORPO(), scores, None, feedback_of(pair(), pair()))
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, scores)).all()


def test_log_odds_of_one_half_are_zero():
    assert log_odds(torch.tensor(-math.log(2), dtype=torch.float64)).item() == pytest.approx(0.0, abs=1e-12)


def test_edge_margin_is_subtracted_from_the_log_odds_ratio():
    terms = terms_of(ORPO(ORPOConfig(odds_weight=1.0)), scores_of(POLICY), None, feedback_of(pair(margin=0.5)))
    ratio = odds(-1.5) / odds(-1.0) * math.exp(-0.5)
    assert terms["odds_ratio"].sum.item() == pytest.approx(-math.log(ratio / (1 + ratio)), abs=1e-9)


def test_there_is_no_value_at_the_reference():
    assert ORPO().value_at_reference is None
