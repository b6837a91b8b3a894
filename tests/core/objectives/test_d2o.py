"""D2O against its equation, against DPO, and on ten actions where two are bad."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of, terms_of

from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.d2o import D2O
from polyalign.objectives.d2o_config import D2OConfig
from polyalign.objectives.pairwise import DPO
from polyalign.policies.base import Kind, Scores
from polyalign.records.samples import Edge

log_prob = st.floats(-6, -0.01)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def against(count: int, **edge: float):
    """Sample 0 is dispreferred, ``count`` self-samples stand over it."""
    return example(count + 1, [Edge(at, 0, **edge) for at in range(1, count + 1)])


def test_value_and_gradient_equal_the_equation_with_two_references():
    """Log-ratios of the self-samples 0.6 and -0.2 (mean 0.2), of the bad one 0.5 against "helpful", 0.9 against the other."""
    beta, alpha = 0.7, 0.3
    scores = scores_of([[[-1.0, -2.0]], [[-1.0]], [[-3.0, -0.5]]])
    reference = scores_of([[[-1.5, -2.4]], [[-1.6]], [[-3.0, -0.3]]])
    helpful = scores_of([[[-1.2, -2.3]], [[-9.0]], [[-9.0, -9.0]]])
    objective = D2O(D2OConfig(beta=beta, alpha=alpha))
    term = objective(scores, {"reference": reference, "helpful": helpful}, feedback_of(against(2)))["preference"]
    z = beta * 0.2 - alpha * 0.5
    assert term.sum.item() == pytest.approx(softplus(-z), abs=1e-9)
    assert term.weight.item() == 1.0
    pull = 1 / (1 + math.exp(z))
    wanted = [[alpha * pull, alpha * pull], [-beta / 2 * pull, 0.0], [-beta / 2 * pull, -beta / 2 * pull]]
    torch.testing.assert_close(gradient(term.sum, scores)[:, 0], torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=0)
    alone = objective(scores, {"reference": reference}, feedback_of(against(2)))["preference"]
    assert alone.sum.item() == pytest.approx(softplus(-(beta * 0.2 - alpha * 0.9)), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(log_prob, min_size=12, max_size=12), weight=st.sampled_from([0.5, 2.0]), margin=st.sampled_from([0.0, 0.3])
)
def test_one_self_sample_and_one_reference_is_dpo(values: list[float], weight: float, margin: float):
    """Two pairs of two decisions (two draws in the first), value and gradient."""
    policy, reference = (
        scores_of([[half[:2], half[1:3]], [half[2:4], half[:2]], [half[3:5]], [half[4:6]]]) for half in (values[:6], values[6:])
    )
    feedback = feedback_of(pair(weight=weight, margin=margin), pair())
    mine = terms_of(D2O(D2OConfig(beta=0.4, alpha=0.4)), policy, reference, feedback)["preference"]
    theirs = terms_of(DPO(DPOConfig(beta=0.4)), policy, reference, feedback)["preference"]
    assert mine.sum.item() == pytest.approx(theirs.sum.item(), abs=1e-6)
    assert mine.weight == theirs.weight
    torch.testing.assert_close(gradient(mine.sum, policy), gradient(theirs.sum, policy), atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(ratios=st.lists(st.floats(-5, 5), min_size=3, max_size=6))
def test_it_is_at_most_the_mean_of_dpo_over_its_pairs(ratios: list[float]):
    """Jensen: -log sigma is convex; with equal log-ratios of all self-samples both are the same."""
    for own, same in ((ratios[1:], False), ([ratios[1]] * len(ratios[1:]), True)):
        scores = scores_of([[[value]] for value in (ratios[0], *own)])
        reference, feedback = scores_of([[[0.0]]] * len(scores.mask)), feedback_of(against(len(own)))
        d2o = loss_of(D2O(D2OConfig(beta=1.0, alpha=1.0)), scores, reference, feedback).item()
        dpo = loss_of(DPO(DPOConfig(beta=1.0)), scores, reference, feedback).item()
        assert d2o <= dpo + 1e-6
        if same:
            assert d2o == pytest.approx(dpo, abs=1e-6)


def test_lists_are_apart_by_dispreferred_response_and_ranking():
    """Two bad responses in one record, and the same bad one in two rankings: three lists of one self-sample each."""
    edges = [Edge(2, 0), Edge(2, 1), Edge(3, 0, weight=3.0, ranking=1)]
    scores = scores_of([[[value]] for value in (0.1, 0.2, 0.5, 0.9)])
    term = terms_of(D2O(D2OConfig(beta=1.0, alpha=1.0)), scores, scores_of([[[0.0]]] * 4), feedback_of(example(4, edges)))[
        "preference"
    ]
    assert term.weight.item() == 5.0
    assert term.sum.item() == pytest.approx(softplus(-0.4) + softplus(-0.3) + 3 * softplus(-0.8), abs=1e-6)


def test_draws_are_averaged_outside_the_link():
    scores = scores_of([[[0.0], [0.4]], [[1.0], [0.2]], [[0.0], [0.6]]], Kind.DENOISING)
    reference = scores_of([[[0.0], [0.0]]] * 3, Kind.DENOISING)
    loss = loss_of(D2O(D2OConfig(beta=1.0, alpha=1.0)), scores, reference, feedback_of(against(2)))
    assert loss.item() == pytest.approx((softplus(-0.5) + softplus(0.0)) / 2, abs=1e-6)


def negated(rate: float, refresh: int) -> tuple[float, float]:
    """Ten actions, two of them bad (mass 0.2 at the start), K = 11, alpha = beta = 0.1, 400 SGD steps of 16 lists; self-samples
    come from a snapshot taken every ``refresh`` steps. Return the mass of the bad, and the others' entropy over log 8."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    lists, k = 16, 11
    feedback = FeedbackTensors.of([against(k)] * lists)
    mask, kind = torch.ones(lists * (k + 1), 1, 1, dtype=torch.bool), torch.zeros(lists * (k + 1), 1, dtype=torch.long)
    reference = Scores(torch.full((lists * (k + 1), 1, 1), -math.log(10), dtype=torch.float64), mask, kind)
    for step in range(400):
        if step % refresh == 0:
            snapshot = logits.detach().softmax(0)
        bad = torch.randint(0, 2, (lists, 1), generator=generator)
        own = torch.multinomial(snapshot.float(), lists * k, replacement=True, generator=generator).view(lists, k)
        chosen = torch.cat([bad, own], 1).flatten()
        scores = Scores(logits.log_softmax(0)[chosen][:, None, None], mask, kind)
        term = D2O()(scores, {"reference": reference}, feedback)["preference"]
        (slope,) = torch.autograd.grad(term.sum / term.weight, logits)
        logits = (logits - rate * slope).detach().requires_grad_()
    final = logits.detach().softmax(0)
    good = final[2:] / final[2:].sum()
    return final[:2].sum().item(), -(good * good.log()).sum().item() / math.log(8)


def test_it_empties_the_bad_actions_and_keeps_the_others_apart():
    """From 0.2 to below 1 %, with the other eight still nearly uniform."""
    mass, entropy = negated(rate=1.0, refresh=400)
    assert mass < 0.01
    assert entropy > 0.95


def test_refreshing_now_and_then_keeps_what_refreshing_at_every_step_loses():
    """At a rate of 4: samples from a snapshot of every 100 steps keep the entropy, samples of the moment collapse it."""
    assert negated(rate=4.0, refresh=100)[1] > 0.95
    assert negated(rate=4.0, refresh=1)[1] < 0.7
