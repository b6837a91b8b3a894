"""Weak-to-strong objectives against closed forms, a plain cross-entropy, and a weak teacher that is outgrown."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of, terms_of

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.weak_labels import WeakLogconf, WeakProduct, WeakXent, hardened
from polyalign.objectives.weak_labels_config import WeakLogconfConfig, WeakProductConfig, WeakXentConfig
from polyalign.policies.base import Scores
from polyalign.records.samples import Edge, Rated

UNIT = {"beta": 1.0}


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(target: float, z: float) -> float:
    return -target * math.log(sigma(z)) - (1 - target) * math.log(sigma(-z))


def compared(margins: list[float], strengths: list[float]) -> tuple[Scores, Scores, FeedbackTensors]:
    """Pairs of these margins (the worse side at 0), with a weak model's log-odds as strengths."""
    scores = scores_of([[[value]] for margin in margins for value in (margin, 0.0)])
    feedback = feedback_of(*(pair(weight=strength) for strength in strengths))
    return scores, scores_of([[[0.0]]] * len(scores.mask)), feedback


def test_xent_is_cross_entropy_with_the_strength_as_log_odds():
    scores, reference, feedback = compared([0.4, -1.0], [2.0, 0.5])
    term = terms_of(WeakXent(WeakXentConfig(label_scale=1.5, **UNIT)), scores, reference, feedback)["preference"]
    expected = cross_entropy(sigma(3.0), 0.4) + cross_entropy(sigma(0.75), -1.0)
    assert (term.sum.item(), term.weight.item()) == (pytest.approx(expected, abs=1e-7), 2.0)
    wanted = [sigma(0.4) - sigma(3.0), sigma(-1.0) - sigma(0.75)]  # p - q on the better side
    assert gradient(term.sum, scores)[::2].flatten().tolist() == pytest.approx(wanted, abs=1e-7)


def test_xent_of_a_sure_weak_model_is_dpo_and_of_one_soft_label_cdpo():
    scores, reference, feedback = compared([0.4, -1.0], [60.0, 60.0])
    plain = loss_of(DPO(DPOConfig(**UNIT)), scores, reference, feedback)
    assert loss_of(WeakXent(WeakXentConfig(**UNIT)), scores, reference, feedback).item() == pytest.approx(plain.item(), abs=1e-9)
    log_odds = math.log(0.8 / 0.2)
    scores, reference, feedback = compared([0.4, -1.0], [log_odds, log_odds])
    smoothed = loss_of(DPO(DPOConfig(label_smoothing=0.2, **UNIT)), scores, reference, feedback)
    soft = loss_of(WeakXent(WeakXentConfig(**UNIT)), scores, reference, feedback)
    assert soft.item() == pytest.approx(smoothed.item(), abs=1e-6)


def test_labels_from_ratings_may_contradict_the_order_and_strength_is_a_weight_then():
    """Rated 0.2 over 0.5 and 0.9 over 0.1 on a scale of 4: q = sigma(-1.2) and sigma(3.2), weights 3 and 1."""
    scores, reference, _ = compared([0.4, -1.0], [1.0, 1.0])
    rated = [(0.2, 0.5), (0.9, 0.1)]
    examples = [
        replace(pair(weight=weight), ratings=(Rated(0, better), Rated(1, worse)))
        for weight, (better, worse) in zip((3.0, 1.0), rated, strict=True)
    ]
    objective = WeakXent(WeakXentConfig(labels="ratings", label_scale=4.0, **UNIT))
    term = terms_of(objective, scores, reference, feedback_of(*examples))["preference"]
    expected = 3 * cross_entropy(sigma(-1.2), 0.4) + cross_entropy(sigma(3.2), -1.0)
    assert (term.sum.item(), term.weight.item()) == (pytest.approx(expected, abs=1e-6), 4.0)
    assert "ratings" in objective.needs and "ratings" not in WeakXent().needs


def test_missing_ratings_are_told():
    scores, reference, feedback = compared([0.4, -1.0], [1.0, 1.0])
    with pytest.raises(TrainingError, match="2 of 2 preferences have a response without rating.*labels: strength"):
        loss_of(WeakXent(WeakXentConfig(labels="ratings")), scores, reference, feedback)


@pytest.mark.parametrize("objective", [WeakXent(), WeakLogconf(), WeakProduct()])
def test_at_the_reference_every_label_costs_ln2(objective):
    scores, reference, feedback = compared([0.0, 0.0, 0.0], [2.0, 0.5, 7.0])
    assert objective.value_at_reference == math.log(2)
    assert loss_of(objective, scores, reference, feedback).item() == pytest.approx(math.log(2), abs=1e-7)


def test_product_is_cross_entropy_with_the_normalised_product():
    """t proportional to q^a p^b over both outcomes; its gradient holds t fixed."""
    margin, strength, a, b = 0.7, 1.3, 0.8, 0.6
    scores, reference, feedback = compared([margin], [strength])
    objective = WeakProduct(WeakProductConfig(label_power=a, policy_power=b, **UNIT))
    loss = loss_of(objective, scores, reference, feedback)
    yes, no = (sigma(s * strength) ** a * sigma(s * margin) ** b for s in (1, -1))
    target = yes / (yes + no)
    assert loss.item() == pytest.approx(cross_entropy(target, margin), abs=1e-7)
    assert gradient(loss, scores)[0].item() == pytest.approx(sigma(margin) - target, abs=1e-7)


def test_product_settles_where_the_docstring_says():
    """z = a * log-odds / (1 - b), by following the gradient."""
    z = torch.zeros((), dtype=torch.float64)
    objective = WeakProduct(WeakProductConfig(label_power=0.9, policy_power=0.4, **UNIT))
    for _ in range(400):
        scores, reference, feedback = compared([float(z)], [1.2])
        z = z - 2.0 * gradient(loss_of(objective, scores, reference, feedback), scores)[0].item()
    assert z.item() == pytest.approx(0.9 * 1.2 / 0.6, abs=1e-5)


MARGINS, STRENGTHS = [0.9, -0.2, 0.3, -1.5, 2.0], [1.0, 3.0, 0.2, 0.8, 2.0]


def test_logconf_without_confidence_is_xent_and_with_all_of_it_the_hard_labels():
    """Mean weak label 0.744: of five margins the largest 3.72 are right: 1, 1, 1, 0.72 (the one at the cut), 0."""
    case = compared(MARGINS, STRENGTHS)
    none = loss_of(WeakLogconf(WeakLogconfConfig(confidence=0.0, **UNIT)), *case)
    assert none.item() == pytest.approx(loss_of(WeakXent(WeakXentConfig(**UNIT)), *case).item(), abs=1e-9)
    balance = sum(sigma(strength) for strength in STRENGTHS)
    assert 3 < balance < 4
    hard = {0.9: 1.0, 2.0: 1.0, 0.3: 1.0, -0.2: balance - 3, -1.5: 0.0}
    scores, reference, feedback = case
    sure = loss_of(WeakLogconf(WeakLogconfConfig(confidence=1.0, **UNIT)), scores, reference, feedback)
    assert sure.item() == pytest.approx(sum(cross_entropy(hard[z], z) for z in MARGINS) / 5, abs=1e-6)
    wanted = [(sigma(z) - hard[z]) / 5 for z in MARGINS]  # the hard labels are held fixed
    assert gradient(sure, scores)[::2].flatten().tolist() == pytest.approx(wanted, abs=1e-6)
    half = loss_of(WeakLogconf(WeakLogconfConfig(confidence=0.5, **UNIT)), scores, reference, feedback)
    assert half.item() == pytest.approx((none.item() + sure.item()) / 2, abs=1e-6)


def test_hard_labels_keep_the_balance_and_the_order():
    """Against a plain loop over the largest values; equal values share, and everything equal gets the balance itself."""
    torch.manual_seed(0)
    pool, mass = torch.randn(40, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    for share in (0.0, 0.13, 0.5, 0.98, 1.0):
        left, expected = share * mass.sum().item(), torch.zeros(40, dtype=torch.float64)
        for at in pool.argsort(descending=True).tolist():
            expected[at] = min(1.0, max(0.0, left / mass[at].item()))
            left -= mass[at].item()
        found = hardened(pool, pool, mass, share * mass.sum())
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
        assert ((found > 0) & (found < 1)).sum() <= 1
    equal = torch.zeros(40, dtype=torch.float64)
    torch.testing.assert_close(hardened(equal, equal, mass, 0.3 * mass.sum()), torch.full_like(equal, 0.3))


def test_confidence_grows_with_the_steps_and_is_saved():
    objective = WeakLogconf(WeakLogconfConfig(confidence=0.8, warmup_steps=4, **UNIT))
    case = compared(MARGINS, STRENGTHS)
    xent, sure = (loss_of(WeakLogconf(WeakLogconfConfig(confidence=c, **UNIT)), *case).item() for c in (0.0, 1.0))
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 0.8):
        assert loss_of(objective, *case).item() == pytest.approx((1 - share) * xent + share * sure, abs=1e-6)
        objective.observe({})
    again = WeakLogconf(WeakLogconfConfig(warmup_steps=4))
    again.load_state_dict(objective.state_dict())
    assert int(again.windows) == 6


def test_weak_labels_teach_more_than_the_weak_model_knows():
    """Weak: a logistic regression on one noisy feature. Strong: one on 20 features, trained on the weak soft labels alone.

    Which of two responses is better depends on a linear function of the difference of their features. The share of the gap
    between weak and ceiling that the strong student closes (PGR) is above 1/2 for each objective.
    """
    torch.manual_seed(0)
    truth = torch.randn(20, dtype=torch.float64)
    features = torch.randn(3000, 20, dtype=torch.float64)
    right = torch.sign(features @ truth)
    view = features @ truth / truth.norm() + 1.2 * torch.randn(3000, dtype=torch.float64)
    half, test = slice(0, 1000), slice(2000, 3000)

    def fitted(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=100)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(inputs @ weights, labels) + 1e-3 * weights.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return weights.detach()

    def accuracy(logits: torch.Tensor) -> float:
        return float((torch.sign(logits) == right[test]).double().mean())

    weak = fitted(view[half, None], (right[half] + 1) / 2)
    ceiling = accuracy(features[test] @ fitted(features[half], (right[half] + 1) / 2))
    weak_logits = view[:, None] @ weak
    taught = slice(1000, 2000)
    order = torch.sign(weak_logits[taught])  # the weak model's order is the record's
    examples = [pair(weight=strength) for strength in weak_logits[taught].abs().tolist()]
    feedback = FeedbackTensors.of(examples)
    mask, kind = torch.ones(2000, 1, 1, dtype=torch.bool), torch.zeros(2000, 1, dtype=torch.long)
    blank = Scores(torch.zeros(2000, 1, 1, dtype=torch.float64), mask, kind)
    for objective in (
        WeakXent(WeakXentConfig(**UNIT)),
        WeakLogconf(WeakLogconfConfig(**UNIT)),
        WeakProduct(WeakProductConfig(policy_power=0.3, **UNIT)),
    ):
        weights = torch.zeros(20, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.05)
        for _ in range(60):
            margin = order * (features[taught] @ weights)
            log_probs = torch.stack([margin / 2, -margin / 2], 1).view(-1, 1, 1)
            term = objective(Scores(log_probs, mask, kind), {"reference": blank}, feedback)["preference"]
            optimizer.zero_grad()
            (term.sum / term.weight + 1e-3 * weights.square().sum()).backward()
            optimizer.step()
        recovered = (accuracy(features[test] @ weights.detach()) - accuracy(weak_logits[test])) / (
            ceiling - accuracy(weak_logits[test])
        )
        assert recovered > 0.5, (type(objective).__name__, recovered)


@pytest.mark.parametrize("objective", [WeakXent(), WeakLogconf(), WeakProduct()])
def test_a_weak_model_without_preference_teaches_none(objective):
    scores, reference, _ = compared([0.4], [0.0])
    term = terms_of(objective, scores, reference, feedback_of(example(2, [Edge(0, 1, weight=0.0)])))["preference"]
    assert (term.sum.item(), term.weight.item()) == (0.0, 0.0)
