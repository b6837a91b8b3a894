"""KTO against its formula, and its reference point z0 over whole steps."""

from __future__ import annotations

import math

import pytest
import torch
from toys.scored import example, feedback_of, gradient, loss_of, scores_of, terms_of

from polyalign.objectives.base import Term
from polyalign.objectives.config import KTOConfig
from polyalign.objectives.kto import KTO
from polyalign.policies.base import Kind

# log-ratios: good 0.6, bad 0.3, mismatched 0.2 and 0.4 -> z0 = 0.3
POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]], [[-3.0]], [[-2.0]]]
REFERENCE = [[[-1.5, -2.1]], [[-1.2, -0.7, -1.4]], [[-3.2]], [[-2.4]]]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def labelled():
    return example(4, labels=(1, -1, 0, 0), mismatched=(2, 3))


def test_value_and_gradient_equal_the_closed_form():
    beta, good, bad = 0.7, 1.0, 1.5
    objective = KTO(KTOConfig(beta=beta, desirable_weight=good, undesirable_weight=bad))
    scores = scores_of(POLICY)
    loss = loss_of(objective, scores, scores_of(REFERENCE), feedback_of(labelled()))
    x, y, z0 = 0.6, 0.3, 0.3
    expected = (good * (1 - sigma(beta * (x - z0))) + bad * (1 - sigma(beta * (z0 - y)))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    up = -good * beta * sigma(beta * (x - z0)) * sigma(-beta * (x - z0)) / 2
    down = bad * beta * sigma(beta * (z0 - y)) * sigma(-beta * (z0 - y)) / 2
    wanted = torch.tensor([[[up, up, 0.0]], [[down] * 3], [[0.0] * 3], [[0.0] * 3]], dtype=torch.float64)
    torch.testing.assert_close(gradient(loss, scores), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("kl", "z0"), [("mismatch", 0.3), ("batch", 0.45), ("auto", 0.3)])
def test_reference_point_follows_the_setting(kl: str, z0: float):
    objective = KTO(KTOConfig(beta=1.0, kl=kl))
    loss = loss_of(objective, scores_of(POLICY), scores_of(REFERENCE), feedback_of(labelled()))
    assert loss.item() == pytest.approx((2 - sigma(0.6 - z0) - sigma(z0 - 0.3)) / 2, abs=1e-9)


def test_auto_takes_the_labelled_samples_where_nothing_is_mismatched():
    """Diffusion-KTO: z0 is the clamped mean of the samples themselves, (0.6 + 0.3) / 2."""
    loss = loss_of(
        KTO(KTOConfig(beta=1.0)), scores_of(POLICY[:2]), scores_of(REFERENCE[:2]), feedback_of(example(2, labels=(1, -1)))
    )
    assert loss.item() == pytest.approx((2 - sigma(0.15) - sigma(0.15)) / 2, abs=1e-9)


def test_reference_point_is_never_negative():
    """The samples fell by 1 and 3: the mean is -2, z0 is 0."""
    scores, reference = scores_of([[[-2.0]], [[-4.0]]]), scores_of([[[-1.0]], [[-1.0]]])
    loss = loss_of(KTO(KTOConfig(beta=1.0)), scores, reference, feedback_of(example(2, labels=(1, -1))))
    assert loss.item() == pytest.approx((2 - sigma(-1) - sigma(3)) / 2, abs=1e-9)


def test_unlabelled_samples_cost_nothing():
    scores = scores_of(POLICY[:2])
    terms = terms_of(KTO(), scores, scores_of(REFERENCE[:2]), feedback_of(example(2, labels=(1, 0))))
    assert terms["preference"].weight.item() == 1.0
    assert gradient(terms["preference"].sum, scores)[1].abs().sum().item() == 0.0


def test_a_label_on_a_mismatched_sample_is_not_read():
    scores, reference = scores_of(POLICY), scores_of(REFERENCE)
    plain = loss_of(KTO(), scores, reference, feedback_of(labelled()))
    marked = loss_of(KTO(), scores, reference, feedback_of(example(4, labels=(1, -1, 1, -1), mismatched=(2, 3))))
    assert marked.item() == plain.item()


def test_needs_mismatched_samples_only_when_told_to_use_them():
    assert "mismatch" in KTO(KTOConfig(kl="mismatch")).needs
    assert "mismatch" not in KTO().needs | KTO(KTOConfig(kl="batch")).needs


@pytest.mark.parametrize(("good", "bad", "value"), [(1.0, 1.0, 0.5), (2.0, 2.0, 1.0), (1.0, 1.5, None)])
def test_value_at_reference_is_half_the_weight_if_there_is_one_weight(good: float, bad: float, value: float | None):
    objective = KTO(KTOConfig(desirable_weight=good, undesirable_weight=bad))
    assert objective.value_at_reference == value
    if value is not None:
        loss = loss_of(objective, scores_of(POLICY), scores_of(POLICY), feedback_of(labelled()))
        assert loss.item() == pytest.approx(value, abs=1e-12)


def test_draws_share_one_reference_point_and_are_averaged_outside_the_link():
    """Draws of the good sample: 1.0 and 0.2, of the bad one 0.4 and 0.0; z0 = (0.6 + 0.2) / 2 = 0.4."""
    scores = scores_of([[[1.0], [0.2]], [[0.4], [0.0]]], Kind.DENOISING)
    reference = scores_of([[[0.0], [0.0]]] * 2, Kind.DENOISING)
    loss = loss_of(KTO(KTOConfig(beta=1.0)), scores, reference, feedback_of(example(2, labels=(1, -1))))
    good = (2 - sigma(0.6) - sigma(-0.2)) / 2
    bad = (2 - sigma(0.0) - sigma(0.4)) / 2
    assert loss.item() == pytest.approx((good + bad) / 2, abs=1e-12)


@pytest.mark.parametrize("kl", ["auto", "mismatch", "batch"])
def test_statistics_over_micro_batches_give_the_loss_of_the_whole(kl: str):
    """Micro-batches of unequal size, one of them without any mismatched sample."""
    objective = KTO(KTOConfig(beta=1.0, kl=kl))
    whole = loss_of(
        objective, scores_of([*POLICY, *POLICY[:2]]), scores_of([*REFERENCE, *REFERENCE[1::-1]]), feedback_of(labelled(), two())
    )
    parts = [
        (scores_of(POLICY), scores_of(REFERENCE), feedback_of(labelled())),
        (scores_of(POLICY[:2]), scores_of(REFERENCE[1::-1]), feedback_of(two())),
    ]
    gathered = [objective.statistics(scores, {"reference": ref}, feedback) for scores, ref, feedback in parts]
    statistics = {
        name: sum(terms[name].sum for terms in gathered) / sum(terms[name].weight for terms in gathered)
        for name in objective.statistic_names
    }
    terms = [objective(scores, {"reference": ref}, feedback, statistics)["preference"] for scores, ref, feedback in parts]
    total = Term(sum(t.sum for t in terms), sum(t.weight for t in terms))
    assert (total.sum / total.weight).item() == pytest.approx(whole.item(), abs=1e-12)


def two():
    return example(2, labels=(-1, 1))


def test_statistics_carry_no_gradient_and_have_the_declared_names():
    scores = scores_of(POLICY)
    statistics = KTO().statistics(scores, {"reference": scores_of(REFERENCE)}, feedback_of(labelled()))
    assert tuple(statistics) == KTO.statistic_names
    assert not any(term.sum.requires_grad for term in statistics.values())
