"""CPL against its formula, written out in plain Python, and against the losses that it contains."""

from __future__ import annotations

import math

import pytest
import torch
from toys.scored import feedback_of, gradient, loss_of, pair, scores_of

from polyalign.objectives.config import CPLConfig, CPLKLConfig, CPOConfig, DPOConfig
from polyalign.objectives.cpl import CPL
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.reference_free import CPO

POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]]]
REFERENCE = [[[-1.25, -1.0]], [[-2.0, -0.5, -0.75]]]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("bias", "expected"), [(1.0, math.log(2)), (0.5, 1.701)])
def test_unlikely_pairs_of_equal_advantage_cost_more_with_a_bias(bias: float, expected: float):
    """A = -3 on both sides: ln 2 without bias; with 1/2 it is log(1 + exp(1.5)) = 1.701."""
    scores = scores_of([[[-10.0, -20.0]], [[-15.0, -15.0]]])
    loss = loss_of(CPL(CPLConfig(bias=bias)), scores, None, feedback_of(pair()))
    assert loss.item() == pytest.approx(expected, abs=1e-3)


def test_value_and_gradient_are_those_of_the_closed_form():
    """alpha 1/2, discount 0.9, bias 0.8, margin 0.25."""
    alpha, discount, bias, margin = 0.5, 0.9, 0.8, 0.25
    better = alpha * (-1.0 - 2.0 * discount)
    worse = alpha * (-1.5 - 0.5 * discount - discount**2)
    z = better - bias * worse - margin
    scores = scores_of(POLICY)
    config = CPLConfig(alpha=alpha, bias=bias, discount=discount)
    loss = loss_of(CPL(config), scores, None, feedback_of(pair(margin=margin)))
    assert loss.item() == pytest.approx(-math.log(sigma(z)), abs=1e-6)
    up, down = -sigma(-z) * alpha, sigma(-z) * alpha * bias
    expected = torch.tensor([[[up, up * discount, 0.0]], [[down, down * discount, down * discount**2]]], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, scores), expected, atol=1e-6, rtol=0)


def test_without_bias_it_is_cpo_and_against_a_reference_dpo():
    scores, reference, feedback = scores_of(POLICY), scores_of(REFERENCE), feedback_of(pair(margin=0.2))
    alone = loss_of(CPL(CPLConfig(bias=1.0)), scores, None, feedback)
    torch.testing.assert_close(alone, loss_of(CPO(CPOConfig(nll_weight=0.0)), scores, None, feedback))
    measured = loss_of(CPL(CPLKLConfig(bias=1.0)), scores, reference, feedback)
    torch.testing.assert_close(measured, loss_of(DPO(DPOConfig(beta=0.1)), scores, reference, feedback))


def test_at_the_reference_it_starts_at_ln_2_whatever_the_bias():
    scores = scores_of(POLICY)
    objective = CPL(CPLKLConfig(bias=0.3, discount=0.9))
    assert objective.value_at_reference == math.log(2) and CPL().value_at_reference is None
    assert loss_of(objective, scores, scores, feedback_of(pair())).item() == pytest.approx(math.log(2), abs=1e-7)
