"""The DPO family and SimPO against their formulas, written out in plain Python for numbers small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of, terms_of

from polyalign.objectives.config import DPOConfig, HingeConfig, IPOConfig, RobustConfig, SimPOConfig
from polyalign.objectives.pairwise import DPO, SimPO
from polyalign.policies.base import Kind
from polyalign.records.samples import Edge

# better: log-ratio 0.5 + 0.1 = 0.6 over 2 tokens; worse: -0.3 + 0.2 + 0.4 = 0.3 over 3 tokens.
POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]]]
REFERENCE = [[[-1.5, -2.1]], [[-1.2, -0.7, -1.4]]]
SUM_MARGIN = 0.6 - 0.3
MEAN_MARGIN = 0.6 / 2 - 0.3 / 3


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def one_pair(config: DPOConfig, **edge: float) -> tuple[float, torch.Tensor]:
    scores = scores_of(POLICY)
    loss = loss_of(DPO(config), scores, scores_of(REFERENCE), feedback_of(pair(**edge)))
    return loss.item(), gradient(loss, scores)


BETA, E = 0.7, 0.2
# (config, loss, d loss / d margin), each by the formula in the docstring of DPO.
CLOSED_FORMS = {
    "sigmoid": (
        DPOConfig(beta=BETA),
        -math.log(sigma(BETA * SUM_MARGIN)),
        -BETA * sigma(-BETA * SUM_MARGIN),
    ),
    "cdpo": (
        DPOConfig(beta=BETA, label_smoothing=E),
        -(1 - E) * math.log(sigma(BETA * SUM_MARGIN)) - E * math.log(sigma(-BETA * SUM_MARGIN)),
        BETA * (-(1 - E) * sigma(-BETA * SUM_MARGIN) + E * sigma(BETA * SUM_MARGIN)),
    ),
    "hinge": (HingeConfig(beta=BETA), 1 - BETA * SUM_MARGIN, -BETA),
    "hinge beyond its margin": (HingeConfig(beta=5), 0.0, 0.0),
    "robust": (
        RobustConfig(beta=BETA, label_smoothing=E),
        (-(1 - E) * math.log(sigma(BETA * SUM_MARGIN)) + E * math.log(sigma(-BETA * SUM_MARGIN))) / (1 - 2 * E),
        BETA * (-(1 - E) * sigma(-BETA * SUM_MARGIN) - E * sigma(BETA * SUM_MARGIN)) / (1 - 2 * E),
    ),
    "ipo of the paper": (
        IPOConfig(beta=BETA, reduction="sum"),
        (SUM_MARGIN - 1 / (2 * BETA)) ** 2,
        2 * (SUM_MARGIN - 1 / (2 * BETA)),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_value_and_gradient_equal_the_closed_form(name: str):
    config, value, slope = CLOSED_FORMS[name]
    loss, grad = one_pair(config)
    assert loss == pytest.approx(value, abs=1e-9)
    expected = torch.tensor([[[slope, slope, 0.0]], [[-slope] * 3]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-9, rtol=0)


def test_ipo_is_length_normalised_by_default():
    loss, grad = one_pair(IPOConfig(beta=BETA))
    slope = 2 * (MEAN_MARGIN - 1 / (2 * BETA))
    assert loss == pytest.approx((MEAN_MARGIN - 1 / (2 * BETA)) ** 2, abs=1e-9)
    expected = torch.tensor([[[slope / 2, slope / 2, 0.0]], [[-slope / 3] * 3]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-9, rtol=0)


def test_dpo_on_means_is_length_normalised_dpo():
    loss, _ = one_pair(DPOConfig(beta=BETA, reduction="mean"))
    assert loss == pytest.approx(-math.log(sigma(BETA * MEAN_MARGIN)), abs=1e-9)


def test_ipo_has_no_gradient_at_its_target_margin():
    target = 1 / (2 * BETA)
    scores, reference = scores_of([[[target]], [[0.0]]]), scores_of([[[0.0]], [[0.0]]])
    loss = loss_of(DPO(IPOConfig(beta=BETA)), scores, reference, feedback_of(pair()))
    assert gradient(loss, scores).abs().max().item() < 1e-12


@pytest.mark.parametrize(
    ("config", "value"),
    [
        (DPOConfig(beta=2000), math.log(2)),
        (DPOConfig(label_smoothing=0.3), math.log(2)),
        (HingeConfig(), 1.0),
        (IPOConfig(beta=0.5), 1.0),
        (DPOConfig(loss="ipo", beta=0.1), 25.0),
        (RobustConfig(label_smoothing=0.4), math.log(2)),
    ],
)
def test_value_at_reference_is_what_the_loss_is_there(config: DPOConfig, value: float):
    objective = DPO(config)
    assert objective.value_at_reference == pytest.approx(value)
    assert loss_of(objective, scores_of(POLICY), scores_of(POLICY), feedback_of(pair())).item() == pytest.approx(value)


def test_on_denoising_errors_dpo_is_diffusion_dpo():
    """generative_alignment: L = -log sigma(-beta/2 * (model_diff - ref_diff)), diff = error(better) - error(worse), beta 5000."""
    beta, model, ref = 5000.0, (0.1010, 0.1205), (0.1012, 0.1201)
    scores = scores_of([[[-0.5 * e]] for e in model], Kind.DENOISING)
    reference = scores_of([[[-0.5 * e]] for e in ref], Kind.DENOISING)
    loss = loss_of(DPO(DPOConfig(beta=beta)), scores, reference, feedback_of(pair()))
    inside = -0.5 * beta * ((model[0] - model[1]) - (ref[0] - ref[1]))
    assert inside == pytest.approx(1.5)
    assert loss.item() == pytest.approx(-math.log(sigma(inside)), abs=1e-9)


@pytest.mark.parametrize(
    "config", [DPOConfig(), DPOConfig(label_smoothing=0.1), HingeConfig(beta=1), IPOConfig(), RobustConfig()]
)
def test_draws_are_averaged_outside_the_link(config: DPOConfig):
    """The loss of two draws is the mean of the two losses, not the loss at the mean margin."""
    objective, feedback = DPO(config), feedback_of(pair())
    reference = scores_of([[[0.0], [0.0]], [[0.0], [0.0]]])
    both = loss_of(objective, scores_of([[[3.0], [-1.0]], [[0.0], [0.0]]]), reference, feedback).item()
    one = scores_of([[[0.0]], [[0.0]]])
    apart = [loss_of(objective, scores_of([[[x]], [[0.0]]]), one, feedback).item() for x in (3.0, -1.0)]
    assert both == pytest.approx(sum(apart) / 2, abs=1e-12)
    assert both != pytest.approx(loss_of(objective, scores_of([[[1.0]], [[0.0]]]), one, feedback).item(), abs=1e-6)


def test_a_padded_draw_does_not_count():
    """Two samples with two draws beside two samples with one draw."""
    objective = DPO(DPOConfig())
    policy = [[[1.0], [2.0]], [[0.5], [0.0]], [[1.0]], [[0.0]]]
    reference = scores_of([[[0.0], [0.0]], [[0.0], [0.0]], [[0.0]], [[0.0]]])
    together = loss_of(objective, scores_of(policy), reference, feedback_of(pair(), pair())).item()
    two = loss_of(objective, scores_of(policy[:2]), scores_of([[[0.0], [0.0]]] * 2), feedback_of(pair())).item()
    one = loss_of(objective, scores_of(policy[2:]), scores_of([[[0.0]]] * 2), feedback_of(pair())).item()
    assert together == pytest.approx((two + one) / 2, abs=1e-12)


def test_an_empty_response_has_log_probability_zero_in_every_draw():
    scores = scores_of([[[1.0], [2.0]], []])
    loss = loss_of(DPO(DPOConfig(beta=1)), scores, scores_of([[[0.0], [0.0]], []]), feedback_of(pair()))
    assert loss.item() == pytest.approx(-(math.log(sigma(1)) + math.log(sigma(2))) / 2, abs=1e-12)


def test_kind_scale_gives_tokens_and_denoising_errors_their_own_beta():
    kinds = [[Kind.TOKEN, Kind.TOKEN, Kind.DENOISING]] * 2
    scores = scores_of([[[-1.0, -2.0, -0.05]], [[-1.5, -2.5, -0.06]]], kinds=kinds)
    reference = scores_of([[[-1.25, -2.0, -0.052]], [[-1.5, -2.0, -0.057]]], kinds=kinds)
    config = DPOConfig(beta=0.1, kind_scale={"denoising": 20000.0})
    loss = loss_of(DPO(config), scores, reference, feedback_of(pair()))
    tokens, errors = 0.25 - (-0.5), 0.002 - (-0.003)
    assert loss.item() == pytest.approx(-math.log(sigma(0.1 * tokens + 2000 * errors)), abs=1e-9)


def test_edge_weights_make_a_weighted_mean():
    scores, reference = scores_of([*POLICY, *POLICY[::-1]]), scores_of([*REFERENCE, *REFERENCE[::-1]])
    loss = loss_of(DPO(DPOConfig(beta=1)), scores, reference, feedback_of(pair(weight=3.0), pair(weight=0.5)))
    expected = -(3 * math.log(sigma(SUM_MARGIN)) + 0.5 * math.log(sigma(-SUM_MARGIN))) / 3.5
    assert loss.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("config", "value"),
    [
        (DPOConfig(beta=2), -math.log(sigma(2 * SUM_MARGIN - 0.25))),
        (HingeConfig(beta=2), 1 - (2 * SUM_MARGIN - 0.25)),
        (IPOConfig(beta=2, reduction="sum"), (SUM_MARGIN - 0.25 / 2 - 1 / 4) ** 2),
    ],
)
def test_edge_margin_is_subtracted_after_beta(config: DPOConfig, value: float):
    assert one_pair(config, margin=0.25)[0] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("objective", [DPO(DPOConfig()), SimPO(SimPOConfig())])
def test_edges_between_prompts_are_not_used(objective):
    """A column edge that says the opposite changes nothing."""
    row, column = Edge(0, 1), Edge(1, 0, weight=9.0, contrast="prompt")
    alone = terms_of(objective, scores_of(POLICY), scores_of(REFERENCE), feedback_of(example(2, [row])))
    both = terms_of(objective, scores_of(POLICY), scores_of(REFERENCE), feedback_of(example(2, [row, column])))
    assert both["preference"].sum.item() == alone["preference"].sum.item()
    assert both["preference"].weight.item() == 1.0


def test_a_reference_with_other_draws_is_refused():
    with pytest.raises(AssertionError, match="reference scores"):
        loss_of(DPO(), scores_of([[[1.0], [2.0]], [[0.0], [0.0]]]), scores_of([[[0.0]], [[0.0]]]), feedback_of(pair()))


def test_extreme_margins_stay_finite():
    scores = scores_of([[[1e5]], [[-1e5]], [[-1e5]], [[1e5]]])
    reference = scores_of([[[0.0]]] * 4)
    for config in (DPOConfig(beta=5000), DPOConfig(beta=5000, label_smoothing=0.1), HingeConfig(), RobustConfig(beta=5000)):
        loss = loss_of(DPO(config), scores, reference, feedback_of(pair(), pair()))
        assert torch.isfinite(loss) and torch.isfinite(gradient(loss, scores)).all()


@pytest.mark.parametrize("loss", ["hinge", "ipo"])
def test_smoothing_of_a_loss_that_has_none_is_refused(loss: str):
    with pytest.raises(ValidationError, match=f"loss '{loss}' has no smoothing"):
        DPOConfig(loss=loss, label_smoothing=0.1)


def test_half_flipped_labels_are_refused():
    with pytest.raises(ValidationError, match="label_smoothing"):
        RobustConfig(label_smoothing=0.5)


def test_presets_fix_their_loss():
    assert (IPOConfig().loss, HingeConfig().loss, RobustConfig().loss) == ("ipo", "hinge", "robust")
    with pytest.raises(ValidationError, match="loss"):
        IPOConfig(loss="sigmoid")


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
