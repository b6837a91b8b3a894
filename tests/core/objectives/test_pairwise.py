"""The DPO family against its formulas, written out in plain Python for numbers small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of, terms_of

from polyalign.objectives.bco import BCO
from polyalign.objectives.config import (
    AOTConfig,
    AOTUnpairedConfig,
    APODownConfig,
    APOZeroConfig,
    BCOPairConfig,
    DiscoPOPConfig,
    DPOConfig,
    EXOPairConfig,
    FDPOConfig,
    HingeConfig,
    IPOConfig,
    NCAPairConfig,
    PairwiseConfig,
    RobustConfig,
    SigmoidNormConfig,
    SPPOHardConfig,
)
from polyalign.objectives.optimal_transport import AOT
from polyalign.objectives.pairwise import DPO
from polyalign.policies.base import Kind
from polyalign.records.samples import Edge

# better: log-ratio 0.5 + 0.1 = 0.6 over 2 tokens; worse: -0.3 + 0.2 + 0.4 = 0.3 over 3 tokens.
POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]]]
REFERENCE = [[[-1.5, -2.1]], [[-1.2, -0.7, -1.4]]]
SUM_MARGIN = 0.6 - 0.3
MEAN_MARGIN = 0.6 / 2 - 0.3 / 3


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope(x: float) -> float:
    """d sigma / dx."""
    return sigma(x) * sigma(-x)


def objective_of(config: PairwiseConfig) -> DPO:
    return BCO(config) if isinstance(config, BCOPairConfig) else DPO(config)


def one_pair(config: PairwiseConfig, **edge: float) -> tuple[float, torch.Tensor]:
    scores = scores_of(POLICY)
    loss = loss_of(objective_of(config), scores, scores_of(REFERENCE), feedback_of(pair(**edge)))
    return loss.item(), gradient(loss, scores)


BETA, E, TAU = 0.7, 0.2, 0.3
B, W = BETA * 0.6, BETA * 0.3  # scaled rewards of the better and the worse response
Z = B - W
MODULATION = sigma(Z / TAU)


def on_margin(config: PairwiseConfig, value: float, slope_of_z: float) -> tuple[PairwiseConfig, float, float, float]:
    return config, value, slope_of_z, -slope_of_z


# (config, loss, d loss / d scaled reward of the better response, of the worse one), by the formulas in the docstring of DPO.
CLOSED_FORMS = {
    "sigmoid": on_margin(DPOConfig(beta=BETA), -math.log(sigma(Z)), -sigma(-Z)),
    "cdpo": on_margin(
        DPOConfig(beta=BETA, label_smoothing=E),
        -(1 - E) * math.log(sigma(Z)) - E * math.log(sigma(-Z)),
        -(1 - E) * sigma(-Z) + E * sigma(Z),
    ),
    "hinge": on_margin(HingeConfig(beta=BETA), 1 - Z, -1),
    "hinge beyond its margin": on_margin(HingeConfig(beta=5), 0.0, 0.0),
    "robust": on_margin(
        RobustConfig(beta=BETA, label_smoothing=E),
        (-(1 - E) * math.log(sigma(Z)) + E * math.log(sigma(-Z))) / (1 - 2 * E),
        (-(1 - E) * sigma(-Z) - E * sigma(Z)) / (1 - 2 * E),
    ),
    "ipo of the paper": on_margin(
        IPOConfig(beta=BETA, reduction="sum"), (SUM_MARGIN - 1 / (2 * BETA)) ** 2, 2 * (SUM_MARGIN - 1 / (2 * BETA)) / BETA
    ),
    "exo_pair": on_margin(
        EXOPairConfig(beta=BETA, label_smoothing=E),
        sigma(Z) * math.log(sigma(Z) / (1 - E)) + sigma(-Z) * math.log(sigma(-Z) / E),
        slope(Z) * (Z - math.log((1 - E) / E)),
    ),
    "discopop": on_margin(
        DiscoPOPConfig(beta=BETA, tau=TAU),
        (1 - MODULATION) * -math.log(sigma(Z)) + MODULATION * math.exp(-Z),
        slope(Z / TAU) / TAU * (math.log(sigma(Z)) + math.exp(-Z)) - (1 - MODULATION) * sigma(-Z) - MODULATION * math.exp(-Z),
    ),
    "nca_pair": (
        NCAPairConfig(beta=BETA),
        -math.log(sigma(B)) - 0.5 * math.log(sigma(-B)) - 0.5 * math.log(sigma(-W)),
        -sigma(-B) + 0.5 * sigma(B),
        0.5 * sigma(W),
    ),
    "bco_pair without baseline": (
        BCOPairConfig(beta=BETA, baseline="none"),
        -math.log(sigma(B)) - math.log(sigma(-W)),
        -sigma(-B),
        sigma(W),
    ),
    "sppo_hard": (
        SPPOHardConfig(beta=BETA),
        (0.6 - 1 / (2 * BETA)) ** 2 + (0.3 + 1 / (2 * BETA)) ** 2,
        2 * (0.6 - 1 / (2 * BETA)) / BETA,
        2 * (0.3 + 1 / (2 * BETA)) / BETA,
    ),
    "apo_zero": (APOZeroConfig(beta=BETA), 1 - sigma(B) + sigma(W), -slope(B), slope(W)),
    "apo_down": (APODownConfig(beta=BETA), sigma(B) + 1 - sigma(B - W), slope(B) - slope(B - W), slope(B - W)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_value_and_gradient_equal_the_closed_form(name: str):
    config, value, better, worse = CLOSED_FORMS[name]
    loss, grad = one_pair(config)
    assert loss == pytest.approx(value, abs=1e-9)
    better, worse = config.beta * better, config.beta * worse
    expected = torch.tensor([[[better, better, 0.0]], [[worse] * 3]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-9, rtol=0)


def test_ipo_is_length_normalised_by_default():
    loss, grad = one_pair(IPOConfig(beta=BETA))
    slope = 2 * (MEAN_MARGIN - 1 / (2 * BETA))
    assert loss == pytest.approx((MEAN_MARGIN - 1 / (2 * BETA)) ** 2, abs=1e-9)
    expected = torch.tensor([[[slope / 2, slope / 2, 0.0]], [[-slope / 3] * 3]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("config", [SigmoidNormConfig(beta=BETA), DPOConfig(beta=BETA, reduction="mean")])
def test_length_normalised_dpo_takes_means(config: DPOConfig):
    loss, grad = one_pair(config)
    assert loss == pytest.approx(-math.log(sigma(BETA * MEAN_MARGIN)), abs=1e-9)
    steepness = -BETA * sigma(-BETA * MEAN_MARGIN)
    expected = torch.tensor([[[steepness / 2, steepness / 2, 0.0]], [[-steepness / 3] * 3]], dtype=torch.float64)
    torch.testing.assert_close(grad, expected, atol=1e-9, rtol=0)


def test_length_normalised_dpo_of_equal_lengths_is_dpo_at_beta_over_length():
    better, worse = [[[-1.0, -2.0, -0.3]], [[-1.5, -0.5, -1.0]]]
    scores, reference = scores_of([better, worse]), scores_of([[[-1.5, -2.1, -0.2]], [[-1.2, -0.7, -1.4]]])
    normalised = loss_of(DPO(SigmoidNormConfig(beta=3.0)), scores, reference, feedback_of(pair()))
    assert normalised.item() == pytest.approx(loss_of(DPO(DPOConfig(beta=1.0)), scores, reference, feedback_of(pair())).item())


def test_saying_everything_twice_changes_dpo_but_not_length_normalised_dpo():
    twice = [[[*draws[0], *draws[0]]] for draws in POLICY], [[[*draws[0], *draws[0]]] for draws in REFERENCE]
    for config, same in ((SigmoidNormConfig(beta=1.0), True), (DPOConfig(beta=1.0), False)):
        loss = loss_of(DPO(config), scores_of(twice[0]), scores_of(twice[1]), feedback_of(pair()))
        margin = MEAN_MARGIN if same else 2 * SUM_MARGIN
        assert loss.item() == pytest.approx(-math.log(sigma(margin)), abs=1e-9)


def test_ipo_and_sppo_meet_their_targets():
    """IPO's minimiser is a margin of 1 / (2 beta); SPPO's are log-ratios of +-1 / (2 beta)."""
    target = 1 / (2 * BETA)
    for config, values in ((IPOConfig(beta=BETA), (target, 0.0)), (SPPOHardConfig(beta=BETA), (target, -target))):
        scores, reference = scores_of([[[x]] for x in values]), scores_of([[[0.0]], [[0.0]]])
        loss = loss_of(DPO(config), scores, reference, feedback_of(pair()))
        assert loss.item() == pytest.approx(0.0, abs=1e-20)
        assert gradient(loss, scores).abs().max().item() < 1e-12


def test_exo_is_zero_where_the_policy_agrees_with_the_smoothed_preference():
    """sigma(z) = 1 - e at z = log((1 - e) / e); to both sides of it the loss is positive."""
    target, losses = math.log((1 - E) / E), []
    for z in (target - 0.1, target, target + 0.1):
        scores, reference = scores_of([[[z]], [[0.0]]]), scores_of([[[0.0]], [[0.0]]])
        losses.append(loss_of(DPO(EXOPairConfig(beta=1, label_smoothing=E)), scores, reference, feedback_of(pair())).item())
    assert losses[1] == pytest.approx(0.0, abs=1e-15)
    assert min(losses[0], losses[2]) > 1e-4


@pytest.mark.parametrize(("tau", "lowers"), [(0.05, True), (0.1, True), (0.105, False), (0.5, False)])
def test_discopop_pulls_the_margin_down_at_the_reference_for_small_tau(tau: float, lowers: bool):
    """Slope at z = 0: -3/4 + (1 - ln 2) / (4 tau), positive below tau = (1 - ln 2) / 3 = 0.1023. The paper's tau is 0.05."""
    scores, reference = scores_of([[[0.0]], [[0.0]]]), scores_of([[[0.0]], [[0.0]]])
    loss = loss_of(DPO(DiscoPOPConfig(beta=1, tau=tau)), scores, reference, feedback_of(pair()))
    steepness = gradient(loss, scores)[0].item()
    assert steepness == pytest.approx(-3 / 4 + (1 - math.log(2)) / (4 * tau), abs=1e-12)
    assert (steepness > 0) == lowers


@pytest.mark.parametrize(
    ("config", "value"),
    [
        (DPOConfig(beta=2000), math.log(2)),
        (DPOConfig(label_smoothing=0.3), math.log(2)),
        (HingeConfig(), 1.0),
        (IPOConfig(beta=0.5), 1.0),
        (IPOConfig(beta=0.1), 25.0),
        (RobustConfig(label_smoothing=0.4), math.log(2)),
        (SigmoidNormConfig(), math.log(2)),
        (FDPOConfig(), math.log(2)),
        (FDPOConfig(divergence="forward_kl"), math.log(2)),
        (FDPOConfig(divergence="alpha"), math.log(2)),
        (EXOPairConfig(label_smoothing=E), -math.log(2) - math.log(E * (1 - E)) / 2),
        (NCAPairConfig(), 2 * math.log(2)),
        (BCOPairConfig(), 2 * math.log(2)),
        (BCOPairConfig(baseline="none"), 2 * math.log(2)),
        (SPPOHardConfig(beta=0.5), 2.0),
        (APOZeroConfig(), 1.0),
        (APODownConfig(), 1.0),
        (DiscoPOPConfig(), (1 + math.log(2)) / 2),
    ],
)
def test_value_at_reference_is_what_the_loss_is_there(config: PairwiseConfig, value: float):
    objective = objective_of(config)
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


EVERY = [
    DPOConfig(),
    DPOConfig(label_smoothing=0.1),
    SigmoidNormConfig(),
    FDPOConfig(),
    FDPOConfig(divergence="forward_kl"),
    FDPOConfig(divergence="alpha"),
    HingeConfig(beta=1),
    IPOConfig(),
    RobustConfig(),
    EXOPairConfig(),
    DiscoPOPConfig(),
    NCAPairConfig(),
    BCOPairConfig(baseline="none"),
    SPPOHardConfig(),
    APOZeroConfig(),
    APODownConfig(),
]
every_link = pytest.mark.parametrize("config", EVERY, ids=lambda config: f"{config.link}-{getattr(config, 'divergence', '')}")


@every_link
def test_draws_are_averaged_outside_the_link(config: PairwiseConfig):
    """The loss of two draws is the mean of the two losses, not the loss at the mean margin."""
    objective, feedback = objective_of(config), feedback_of(pair())
    reference = scores_of([[[0.0], [0.0]], [[0.0], [0.0]]])
    both = loss_of(objective, scores_of([[[3.0], [-1.0]], [[1.0], [1.0]]]), reference, feedback).item()
    one = scores_of([[[0.0]], [[0.0]]])
    apart = [loss_of(objective, scores_of([[[x]], [[1.0]]]), one, feedback).item() for x in (3.0, -1.0)]
    assert both == pytest.approx(sum(apart) / 2, abs=1e-12)
    assert both != pytest.approx(loss_of(objective, scores_of([[[1.0]], [[1.0]]]), one, feedback).item(), abs=1e-6)


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
        (DPOConfig(beta=2, divergence="js"), -math.log(sigma(2 * (math.log(sigma(0.6)) - math.log(sigma(0.3))) - 0.25))),
        (APOZeroConfig(beta=2), 1 - sigma(2 * 0.6 - 0.125) + sigma(2 * 0.3 + 0.125)),
        (NCAPairConfig(beta=2), -math.log(sigma(1.075)) - math.log(sigma(-1.075)) / 2 - math.log(sigma(-0.725)) / 2),
        (SPPOHardConfig(beta=2), (0.6 - 0.125 / 2 - 1 / 4) ** 2 + (0.3 + 0.125 / 2 + 1 / 4) ** 2),
        (BCOPairConfig(beta=2, baseline="none"), -math.log(sigma(1.075)) - math.log(sigma(-0.725))),
    ],
)
def test_edge_margin_is_subtracted_after_beta_half_of_it_from_each_side(config: PairwiseConfig, value: float):
    assert one_pair(config, margin=0.25)[0] == pytest.approx(value, abs=1e-9)


@every_link
def test_a_margin_is_the_same_as_a_better_response_that_is_worse_and_a_worse_one_that_is_better(config: PairwiseConfig):
    """Two-way: asking for m equals moving beta * reward by m / 2 on either side; one decision each, so means are sums."""
    config = config.model_copy(update={"divergence": "reverse_kl"} if hasattr(config, "divergence") else {})
    reference, objective = scores_of([[[0.0]], [[0.0]]]), objective_of(config)
    asked = loss_of(objective, scores_of([[[0.9]], [[-0.4]]]), reference, feedback_of(pair(margin=0.25))).item()
    shift = 0.125 / config.beta
    moved = loss_of(objective, scores_of([[[0.9 - shift]], [[-0.4 + shift]]]), reference, feedback_of(pair())).item()
    assert asked == pytest.approx(moved, rel=1e-12)


@pytest.mark.parametrize("objective", [objective_of(config) for config in EVERY] + [AOT(AOTConfig()), AOT(AOTUnpairedConfig())])
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


@every_link
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_rewards_stay_finite_in_float32(config: PairwiseConfig, size: float):
    """All four signs of the two log-ratios, at |beta * X| up to 1e4, with smoothing and divergences."""
    values = [sign * size / config.beta for sign in (1, -1, -1, 1, 1, 1, -1, -1)]
    scores = scores_of([[[value]] for value in values])
    scores.log_probs = scores.log_probs.detach().float().requires_grad_()
    reference = scores_of([[[0.0]]] * 8)
    reference.log_probs = reference.log_probs.detach().float()
    loss = loss_of(objective_of(config), scores, reference, feedback_of(*[pair()] * 4))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, scores)).all()


def test_discopop_as_printed_is_not_a_number_where_ours_is_logistic():
    """sigma(z / tau) * exp(-z) is 0 * inf at z = -1000; the loss there is -log sigma(z) = 1000."""
    z = torch.tensor(-1000.0)
    assert (torch.sigmoid(z / 0.05) * torch.exp(-z)).isnan()
    scores, reference = scores_of([[[-1000.0]], [[0.0]]]), scores_of([[[0.0]], [[0.0]]])
    loss = loss_of(DPO(DiscoPOPConfig(beta=1)), scores, reference, feedback_of(pair()))
    assert loss.item() == pytest.approx(1000.0, abs=1e-9)
    assert gradient(loss, scores)[0].item() == pytest.approx(-1.0, abs=1e-9)


def test_options_that_a_link_has_no_use_for_are_refused():
    for config, option in ((HingeConfig, "label_smoothing"), (IPOConfig, "label_smoothing"), (NCAPairConfig, "divergence")):
        with pytest.raises(ValidationError, match=option):
            config(**{option: 0.1})


def test_half_flipped_labels_are_refused():
    with pytest.raises(ValidationError, match="label_smoothing"):
        RobustConfig(label_smoothing=0.5)


def test_exo_without_smoothing_is_refused():
    """Its loss is log(1 / e) at best: infinite for e = 0."""
    with pytest.raises(ValidationError, match="label_smoothing"):
        EXOPairConfig(label_smoothing=0.0)
