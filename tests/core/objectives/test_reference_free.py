"""SimPO, AlphaPO and CPO against their formulas, written out in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of, terms_of

from polyalign.objectives.config import AlphaPOConfig, CPOConfig, SimPOConfig
from polyalign.objectives.reference_free import CPO, SimPO
from polyalign.records.samples import Edge

# better: log-probability -3 over 2 tokens, mean -1.5; worse: -3 over 3 tokens, mean -1.
POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]]]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_simpo_equals_the_closed_form_in_value_and_gradient():
    """beta 2, gamma 0.5: mean better -1.5, mean worse -1.0, so z = 2 * (-0.5) - 0.5 = -1.5."""
    scores = scores_of(POLICY)
    loss = loss_of(SimPO(SimPOConfig(beta=2.0, gamma=0.5)), scores, None, feedback_of(pair()))
    assert loss.item() == pytest.approx(-math.log(sigma(-1.5)), abs=1e-9)
    slope = -2 * sigma(1.5)
    expected = torch.tensor([[[slope / 2, slope / 2, 0.0]], [[-slope / 3] * 3]], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, scores), expected, atol=1e-9, rtol=0)


def test_simpo_subtracts_an_edge_margin_beside_gamma():
    loss = loss_of(SimPO(SimPOConfig(beta=2.0, gamma=0.5)), scores_of(POLICY), None, feedback_of(pair(margin=0.25)))
    assert loss.item() == pytest.approx(-math.log(sigma(-1.75)), abs=1e-9)


def test_simpo_has_no_value_at_the_reference():
    assert SimPO().value_at_reference is None


@pytest.mark.parametrize("alpha", [0.25, 1.0, -0.5])
def test_alphapo_equals_the_closed_form_in_value_and_gradient(alpha: float):
    """r = (1 - p^-alpha) / alpha with p = exp(mean log-probability); dr / d log p = p^-alpha."""
    beta, gamma = 2.5, 0.1
    reward = {p: (1 - math.exp(p) ** -alpha) / alpha for p in (-1.5, -1.0)}
    z = beta * (reward[-1.5] - reward[-1.0]) - gamma
    scores = scores_of(POLICY)
    loss = loss_of(SimPO(AlphaPOConfig(beta=beta, gamma=gamma, alpha=alpha)), scores, None, feedback_of(pair()))
    assert loss.item() == pytest.approx(-math.log(sigma(z)), abs=1e-9)
    better = -sigma(-z) * beta * math.exp(1.5 * alpha) / 2
    worse = sigma(-z) * beta * math.exp(1.0 * alpha) / 3
    expected = torch.tensor([[[better, better, 0.0]], [[worse] * 3]], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, scores), expected, atol=1e-9, rtol=0)


def test_alphapo_is_simpo_in_the_limit():
    scores, feedback = scores_of(POLICY), feedback_of(pair(margin=0.2))
    simpo = loss_of(SimPO(SimPOConfig(beta=2.0, gamma=0.5)), scores, None, feedback).item()
    assert loss_of(SimPO(AlphaPOConfig(beta=2.0, gamma=0.5, alpha=0.0)), scores, None, feedback).item() == simpo
    near = loss_of(SimPO(AlphaPOConfig(beta=2.0, gamma=0.5, alpha=1e-7)), scores, None, feedback).item()
    assert near == pytest.approx(simpo, abs=1e-6)


@pytest.mark.parametrize("objective", [SimPO(SimPOConfig(beta=1e4)), SimPO(AlphaPOConfig()), CPO(CPOConfig(beta=1e4))])
def test_hopeless_and_certain_responses_stay_finite_in_float32(objective):
    scores = scores_of([[[-1e4]], [[-1e-6]], [[-1e-6]], [[-1e4]]])
    scores.log_probs = scores.log_probs.detach().float().requires_grad_()
    loss = loss_of(objective, scores, None, feedback_of(pair(), pair()))
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, scores)).all()


def test_cpo_equals_the_closed_form_in_value_and_gradient():
    """Sums -3 and -3.5 against a margin of 0.25, beta 0.5: z = 0; plus 0.5 * NLL of the better response, 3 / 2."""
    scores = scores_of([[[-1.0, -2.0]], [[-1.5, -1.0, -1.0]]])
    loss = loss_of(CPO(CPOConfig(beta=0.5, nll_weight=0.5)), scores, None, feedback_of(pair(margin=0.25)))
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * 1.5, abs=1e-9)
    better, worse = -0.5 / 2 - 0.5 / 2, 0.5 / 2
    expected = torch.tensor([[[better, better, 0.0]], [[worse] * 3]], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, scores), expected, atol=1e-9, rtol=0)


def test_cpo_counts_a_response_as_often_as_it_wins():
    scores = scores_of([*POLICY, [[-9.0]]])
    terms = terms_of(CPO(), scores, None, feedback_of(example(3, [Edge(0, 1), Edge(0, 2, weight=0.5)])))
    assert (terms["nll"].sum.item(), terms["nll"].weight.item()) == (4.5, 3.0)
    assert terms["preference"].weight.item() == 1.5


@pytest.mark.parametrize("objective", [SimPO(), SimPO(AlphaPOConfig()), CPO()])
def test_edges_between_prompts_are_not_used(objective):
    row, column = Edge(0, 1), Edge(1, 0, weight=9.0, contrast="prompt")
    alone, both = (terms_of(objective, scores_of(POLICY), None, feedback_of(example(2, e))) for e in ([row], [row, column]))
    assert {name: (t.sum.item(), t.weight.item()) for name, t in both.items()} == {
        name: (t.sum.item(), t.weight.item()) for name, t in alone.items()
    }


@pytest.mark.parametrize("objective", [SimPO(AlphaPOConfig()), CPO()])
def test_without_a_reference_there_is_no_value_at_it(objective):
    assert objective.value_at_reference is None
    assert objective.needs == {"edges"}
