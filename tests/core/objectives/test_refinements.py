"""WPO, LD-DPO, MM-DPO, DenseDPO and segment-weighted DPO against their formulas on numbers small enough to check by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.config import DPOConfig, SigmoidNormConfig
from polyalign.objectives.dense import DenseDPO, SegmentDPO
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.refinements import LDDPO, MMDPO, WPO
from polyalign.objectives.refinements_config import DenseDPOConfig, LDDPOConfig, MMDPOConfig, SegmentDPOConfig, WPOConfig
from polyalign.records.samples import Edge, Labelled, Rated

# log-ratios by decision: better 0.5, 0.1; worse -0.3, 0.2, 0.4
POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]]]
REFERENCE = [[[-1.5, -2.1]], [[-1.2, -0.7, -1.4]]]
BETA = 0.7
LN2 = math.log(2)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def nll(x: float) -> float:
    return -math.log(sigma(x))


def evaluated(objective: DPO, feedback: FeedbackTensors, extras: dict | None = None) -> tuple[float, torch.Tensor]:
    scores = replace(scores_of(POLICY), extras=extras or {})
    loss = loss_of(objective, scores, scores_of(REFERENCE), feedback)
    return loss.item(), gradient(loss, scores)


def as_gradient(better: list[float], worse: list[float]) -> torch.Tensor:
    return torch.tensor([[[*better, 0.0]], [worse]], dtype=torch.float64)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


def test_wpo_weighs_a_pair_by_its_mean_probabilities_without_gradient():
    z = BETA * (0.6 - 0.3)
    weight = math.exp(-3.0 / 2) * math.exp(-3.0 / 3)
    loss, grad = evaluated(WPO(WPOConfig(beta=BETA, alignment="none")), feedback_of(pair()))
    assert loss == pytest.approx(weight * nll(z), abs=1e-9)
    slope = -BETA * sigma(-z) * weight
    close(grad, as_gradient([slope] * 2, [-slope] * 3))


def test_wpo_aligns_each_decision_with_what_the_policy_samples_on_average():
    squares = torch.tensor([[-0.5, -1.0, float("nan")], [-0.25, -0.75, -0.5]], dtype=torch.float64)
    weight = math.exp((-3.0 + 1.5) / 2) * math.exp((-3.0 + 1.5) / 3)
    objective = WPO(WPOConfig(beta=BETA))
    loss, _ = evaluated(objective, feedback_of(pair()), {"log_sum_squares": squares})
    assert loss == pytest.approx(weight * nll(BETA * 0.3), abs=1e-9)
    assert objective.wants == {"log_sum_squares"} <= objective.needs


def test_wpo_counts_pairs_not_weights():
    feedback = feedback_of(example(2, [Edge(0, 1, weight=3.0)]))
    scores = scores_of(POLICY)
    objective = WPO(WPOConfig(alignment="none"))
    found = objective(scores, {"reference": scores_of(REFERENCE)}, feedback)["preference"].weight.item()
    assert found == objective.weights(scores.mask, scores.kind, feedback)["preference"].item() == 3.0


@pytest.mark.parametrize("ld_alpha", [0.0, 0.4, 1.0])
def test_ld_dpo_scales_what_is_longer_than_the_other(ld_alpha: float):
    """The worse response has a third decision, of log-ratio 0.4."""
    z = BETA * (0.6 - (-0.1 + ld_alpha * 0.4))
    loss, grad = evaluated(LDDPO(LDDPOConfig(beta=BETA, ld_alpha=ld_alpha)), feedback_of(pair()))
    assert loss == pytest.approx(nll(z), abs=1e-9)
    slope = -BETA * sigma(-z)
    close(grad, as_gradient([slope] * 2, [-slope, -slope, -ld_alpha * slope]))


def test_the_common_length_is_each_pairs_own():
    """The middle response of three is the longer one of one pair and the shorter one of the other."""
    policy = [[[-1.0]], [[-1.0, -1.0]], [[-1.0, -1.0, -1.0]]]
    reference = [[[-1.5]], [[-1.25, -1.125]], [[-1.0, -2.0, -3.0]]]  # ratios: 0.5 | 0.25, 0.125 | 0, 1, 2
    feedback = feedback_of(example(3, [Edge(0, 1), Edge(2, 1)]))
    loss = loss_of(LDDPO(LDDPOConfig(beta=1.0, ld_alpha=0.5)), scores_of(policy), scores_of(reference), feedback)
    first, second = 0.5 - (0.25 + 0.5 * 0.125), (0 + 1 + 0.5 * 2) - (0.25 + 0.125)
    assert loss.item() == pytest.approx((nll(first) + nll(second)) / 2, abs=1e-9)


def test_ld_dpo_takes_margins():
    loss, _ = evaluated(LDDPO(LDDPOConfig(beta=BETA, ld_alpha=0.0)), feedback_of(pair(margin=0.5)))
    assert loss == pytest.approx(nll(BETA * 0.7 - 0.5), abs=1e-7)


RATED = feedback_of(replace(pair(), ratings=(Rated(0, 0.75), Rated(1, 0.25))))


def test_mm_dpo_raises_beta_with_the_rating_margin():
    beta = BETA * (1 + 0.5 * (1 - math.exp(-3.0 * 0.5)))
    loss, grad = evaluated(MMDPO(MMDPOConfig(beta=BETA, growth=0.5, margin_scale=3.0)), RATED)
    assert loss == pytest.approx(nll(beta * 0.3), abs=1e-7)
    slope = -beta * sigma(-beta * 0.3)
    close(grad, as_gradient([slope] * 2, [-slope] * 3))


def test_mm_dpo_from_strength_neither_shifts_nor_weighs():
    feedback = feedback_of(example(2, [Edge(0, 1, weight=2.0)]))
    beta = BETA * (1 + 0.5 * (1 - math.exp(-2.0)))
    objective = MMDPO(MMDPOConfig(beta=BETA, margin_from="strength"))
    assert evaluated(objective, feedback)[0] == pytest.approx(nll(beta * 0.3), abs=1e-7)
    scores = scores_of(POLICY)
    assert objective.weights(scores.mask, scores.kind, feedback)["preference"].item() == 1.0


def test_mm_dpo_without_margin_or_growth_is_dpo():
    plain = evaluated(DPO(DPOConfig(beta=BETA)), feedback_of(pair()))[0]
    assert evaluated(MMDPO(MMDPOConfig(beta=BETA)), feedback_of(pair()))[0] == pytest.approx(plain, abs=1e-9)
    assert evaluated(MMDPO(MMDPOConfig(beta=BETA, growth=0.0)), RATED)[0] == pytest.approx(plain, abs=1e-9)


def labelled(*segments: Labelled, **edge: float) -> FeedbackTensors:
    return feedback_of(replace(pair(**edge), segments=segments))


def dense(feedback: FeedbackTensors, **options: object) -> tuple[float, torch.Tensor]:
    return evaluated(DenseDPO(DenseDPOConfig(beta=BETA, **options)), feedback)


def test_dense_dpo_compares_stretch_by_stretch():
    """Decision 0: labels +1 and -1, 2 apart. Decisions 1 and on: 0 and +1: the worse response is better there, by 1."""
    feedback = labelled(Labelled(0, 0, 1, "tokens", 1.0), Labelled(1, 0, 1, "tokens", -1.0), Labelled(1, 1, 3, "tokens", 1.0))
    first, rest = BETA * (0.5 - (-0.3)), BETA * ((0.2 + 0.4) - 0.1)
    loss, grad = dense(feedback)
    assert loss == pytest.approx((2 * nll(first) + nll(rest)) / 3, abs=1e-9)
    early, late = -BETA * sigma(-first) * 2 / 3, -BETA * sigma(-rest) / 3
    close(grad, as_gradient([early, -late], [-early, late, late]))


def test_neighbouring_segments_of_equal_labels_are_two_stretches():
    feedback = labelled(Labelled(0, 0, 1, "tokens", 1.0), Labelled(0, 1, 2, "tokens", 1.0))
    loss, _ = dense(feedback)
    assert loss == pytest.approx((nll(BETA * 0.8) + nll(BETA * (0.1 - 0.2))) / 2, abs=1e-9)


def test_stretches_of_equal_labels_are_left_out():
    feedback = labelled(Labelled(0, 0, 1, "tokens", 1.0), Labelled(0, 1, 3, "tokens", -1.0), Labelled(1, 1, 3, "tokens", -1.0))
    loss, grad = dense(feedback)
    assert loss == pytest.approx(nll(BETA * 0.8), abs=1e-9)
    assert grad[:, :, 1:].eq(0).all()


def test_a_pair_without_labelled_stretches_is_plain_dpo():
    plain = evaluated(DPO(DPOConfig(beta=BETA)), feedback_of(pair(margin=0.5)))
    for feedback in (labelled(margin=0.5), labelled(Labelled(0, 50, 60, "tokens", 1.0), margin=0.5)):
        loss, grad = dense(feedback)
        assert loss == pytest.approx(plain[0], abs=1e-9)
        close(grad, plain[1])


def test_one_segment_over_everything_is_plain_dpo_and_a_bad_one_is_its_mirror():
    for value, z in ((1.0, BETA * 0.3), (-1.0, -BETA * 0.3)):
        loss, _ = dense(labelled(Labelled(0, 0, 9, "steps", value)))
        assert loss == pytest.approx(nll(z), abs=1e-9)


def test_seconds_are_translated_and_a_decision_belongs_where_its_middle_is():
    """At 2 decisions a second, [0.2, 0.7) covers decision 0 (middle 0.25 s) and not decision 1 (0.75 s)."""
    feedback = labelled(Labelled(0, 0.2, 0.7, "seconds", 1.0))
    assert dense(feedback, decisions_per={"seconds": 2.0})[0] == pytest.approx(nll(BETA * 0.8), abs=1e-9)
    with pytest.raises(TrainingError, match="segments are given in seconds.*decisions_per"):
        dense(feedback)


def test_dense_dpo_of_two_pairs_is_their_mean():
    one, other = labelled(Labelled(0, 0, 1, "tokens", 1.0)), labelled(Labelled(1, 1, 3, "tokens", 1.0))
    both = feedback_of(
        replace(pair(), segments=(Labelled(0, 0, 1, "tokens", 1.0),)),
        replace(pair(), segments=(Labelled(1, 1, 3, "tokens", 1.0),)),
    )
    objective = DenseDPO(DenseDPOConfig(beta=BETA))
    loss = loss_of(objective, scores_of(POLICY * 2), scores_of(REFERENCE * 2), both)
    assert loss.item() == pytest.approx((dense(one)[0] + dense(other)[0]) / 2, abs=1e-9)


def test_segment_weights_multiply_and_divide():
    """Inside segments: the better response's decision 1, the worse one's 0. gamma = 3."""
    feedback = labelled(Labelled(0, 1, 2, "tokens", 1.0), Labelled(1, 0, 1, "tokens", -1.0))
    better, worse = (0.5 + 3 * 0.1) / 4, (3 * -0.3 + 0.2 + 0.4) / 5
    z = BETA * (better - worse)
    loss, grad = evaluated(SegmentDPO(SegmentDPOConfig(beta=BETA, segment_weight=3.0)), feedback)
    assert loss == pytest.approx(nll(z), abs=1e-7)
    slope = -BETA * sigma(-z)
    close(grad, as_gradient([slope / 4, 3 * slope / 4], [-3 * slope / 5, -slope / 5, -slope / 5]))


def test_segment_weight_1_is_length_normalised_dpo_and_with_sums_dpo():
    feedback = labelled(Labelled(0, 1, 2, "tokens", 1.0))
    for reduction, config in (("mean", SigmoidNormConfig(beta=BETA)), ("sum", DPOConfig(beta=BETA))):
        mine, grad = evaluated(SegmentDPO(SegmentDPOConfig(beta=BETA, segment_weight=1.0, reduction=reduction)), feedback)
        expected, slopes = evaluated(DPO(config), feedback)
        assert mine == pytest.approx(expected, abs=1e-9)
        close(grad, slopes)


@pytest.mark.parametrize("objective", [DenseDPO(), SegmentDPO(), LDDPO(), MMDPO()])
def test_at_the_reference_every_refinement_costs_ln_2(objective: DPO):
    feedback = feedback_of(replace(pair(), segments=(Labelled(0, 0, 1, "tokens", 1.0),), ratings=(Rated(0, 1.0), Rated(1, 0.0))))
    loss = loss_of(objective, scores_of(POLICY), scores_of(POLICY), feedback)
    assert loss.item() == pytest.approx(LN2, abs=1e-9) == pytest.approx(objective.value_at_reference)
