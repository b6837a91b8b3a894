"""APO-zero without pairs and unlikelihood, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from toys.scored import example, feedback_of, gradient, loss_of, scores_of, terms_of

from polyalign.objectives.config import KTOConfig
from polyalign.objectives.kto import KTO
from polyalign.objectives.unpaired import APOZeroUnpaired, Unlikelihood
from polyalign.objectives.unpaired_config import APOZeroUnpairedConfig, UnlikelihoodConfig
from polyalign.policies.base import Kind, Scores

# log-ratios: good 0.6, bad 0.3, mismatched 0.2
POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]], [[-3.0]]]
REFERENCE = [[[-1.5, -2.1]], [[-1.2, -0.7, -1.4]], [[-3.2]]]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_apo_zero_unpaired_equals_the_closed_form():
    beta, good, bad = 0.7, 1.0, 1.5
    objective = APOZeroUnpaired(APOZeroUnpairedConfig(beta=beta, desirable_weight=good, undesirable_weight=bad))
    scores = scores_of(POLICY)
    feedback = feedback_of(example(3, labels=(1, -1, 0), mismatched=(2,)))
    loss = loss_of(objective, scores, scores_of(REFERENCE), feedback)
    assert loss.item() == pytest.approx((good * (1 - sigma(beta * 0.6)) + bad * sigma(beta * 0.3)) / 2, abs=1e-9)
    up, down = (w * beta * sigma(x) * sigma(-x) / 2 for w, x in ((-good, beta * 0.6), (bad, beta * 0.3)))
    wanted = torch.tensor([[[up, up, 0.0]], [[down] * 3], [[0.0] * 3]], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, scores), wanted, atol=1e-9, rtol=0)


def test_apo_zero_unpaired_is_kto_where_its_reference_point_is_zero():
    """The mismatched sample's log-ratio is made negative, so KTO's z0 is clamped to 0."""
    reference = scores_of([*REFERENCE[:2], [[-2.0]]])
    feedback = feedback_of(example(3, labels=(1, -1, 0), mismatched=(2,)))
    kto, ours = (one(config(beta=0.7)) for one, config in ((KTO, KTOConfig), (APOZeroUnpaired, APOZeroUnpairedConfig)))
    assert loss_of(ours, scores_of(POLICY), reference, feedback).item() == pytest.approx(
        loss_of(kto, scores_of(POLICY), reference, feedback).item(), abs=1e-12
    )


@pytest.mark.parametrize(("good", "bad", "value"), [(1.0, 1.0, 0.5), (2.0, 2.0, 1.0), (1.0, 1.5, None)])
def test_apo_zero_unpaired_at_the_reference_is_half_the_weight(good: float, bad: float, value: float | None):
    objective = APOZeroUnpaired(APOZeroUnpairedConfig(desirable_weight=good, undesirable_weight=bad))
    assert objective.value_at_reference == value
    if value is not None:
        loss = loss_of(objective, scores_of(POLICY), scores_of(POLICY), feedback_of(example(3, labels=(1, -1, -1))))
        assert loss.item() == pytest.approx(value, abs=1e-12)


def test_unlikelihood_is_the_mean_over_decisions_of_bad_responses():
    """Probabilities 0.5, 0.25 and 0.1 of bad decisions; the good response and the unlabelled one cost nothing."""
    scores = scores_of([[[math.log(0.5), math.log(0.25)]], [[math.log(0.1)]], [[-0.1]], [[-0.2]]])
    term = terms_of(Unlikelihood(), scores, None, feedback_of(example(4, labels=(-1, -1, 1, 0))))["unlikelihood"]
    assert term.weight.item() == 3.0
    assert term.sum.item() == pytest.approx(-math.log(0.5) - math.log(0.75) - math.log(0.9), abs=1e-9)
    slopes = gradient(term.sum, scores)
    wanted = torch.tensor([[[1.0, 1 / 3]], [[1 / 9, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]], dtype=torch.float64)  # p / (1 - p)
    torch.testing.assert_close(slopes, wanted, atol=1e-9, rtol=0)


def test_unlikelihood_through_a_softmax_equals_autograd_in_float64():
    """-log(1 - softmax(logits)[token]), gradient on the logits, from 1e-12 to 1 - 1e-12."""
    for gap in (-27.0, -3.0, 0.0, 3.0, 27.0):
        logits = torch.tensor([gap, 0.0, -0.5], dtype=torch.float64, requires_grad=True)
        mask, kind = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
        scores = Scores(torch.log_softmax(logits, 0)[:1].view(1, 1, 1), mask, kind)
        loss = loss_of(Unlikelihood(), scores, None, feedback_of(example(1, labels=(-1,))))
        (ours,) = torch.autograd.grad(loss, logits)
        others = torch.logsumexp(logits[1:], 0)  # -log(1 - p) without ever forming 1 - p
        direct = torch.logsumexp(logits, 0) - others
        (theirs,) = torch.autograd.grad(direct, logits)
        assert loss.item() == pytest.approx(direct.item(), rel=1e-4, abs=1e-12)
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-4)


@pytest.mark.parametrize("log_p", [0.0, -1e-8, -1e-30, -1e-6, -80.0, -1e4])
def test_unlikelihood_is_finite_in_float32_at_every_probability(log_p: float):
    values = torch.full((1, 1, 1), log_p, requires_grad=True)
    scores = Scores(values, torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long))
    loss = loss_of(Unlikelihood(), scores, None, feedback_of(example(1, labels=(-1,))))
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, scores)).all()


def test_unlikelihood_scales_each_kind():
    scores = scores_of([[[-1.0, -1.0]]], kinds=[[Kind.TOKEN, Kind.DENOISING]])
    loss = loss_of(
        Unlikelihood(UnlikelihoodConfig(kind_scale={"denoising": 3.0})), scores, None, feedback_of(example(1, labels=(-1,)))
    )
    assert loss.item() == pytest.approx(-(math.log(1 - math.exp(-1)) + math.log(1 - math.exp(-3))) / 2, abs=1e-9)
