"""MaPO, DSPO, TDPO, CRPO, reward-weighted regression and Diffusion-KTO against their formulas on denoising errors.

A draw's score is -1/2 of its error. Errors here: the better response 0.4 and 0.8 in two draws, the worse one 1.0 and 0.6;
under the reference 0.6, 0.6 and 0.8, 0.8.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from toys.records import grid as prompts_and_responses
from toys.scored import example, feedback_of, gradient, grid, loss_of, pair, scores_of, terms_of

from polyalign.objectives.config import DPOConfig, KTOConfig
from polyalign.objectives.denoising import DSPO, TDPO, MaPO
from polyalign.objectives.denoising_config import CRPOConfig, DiffusionKTOConfig, DSPOConfig, MaPOConfig, RWRConfig, TDPOConfig
from polyalign.objectives.kto import KTO
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.reward_weighted import RWR
from polyalign.objectives.weighted_sum import WeightedSum
from polyalign.policies.base import Kind, Scores
from polyalign.records.samples import Edge, Rated
from polyalign.records.schema import Comparison
from polyalign.records.views import VIEWS

BETTER, WORSE = (0.4, 0.8), (1.0, 0.6)
BETTER_REFERENCE, WORSE_REFERENCE = (0.6, 0.6), (0.8, 0.8)


def errors(*samples: tuple[float, ...]) -> Scores:
    return scores_of([[[-0.5 * error] for error in sample] for sample in samples], Kind.DENOISING)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def nll(x: float) -> float:
    return -math.log(sigma(x))


def fitness(error: float, gamma: float) -> float:
    return gamma * error / (math.exp(gamma * error) - 1)


def test_mapo_is_the_error_of_the_better_and_a_margin_of_fitness():
    config = MaPOConfig(beta=0.3, gamma=0.5, steps=10.0)
    margins = [10.0 * (fitness(b, 0.5) - fitness(w, 0.5)) for b, w in zip(BETTER, WORSE, strict=True)]
    terms = terms_of(MaPO(config), errors(BETTER, WORSE), None, feedback_of(pair()))
    assert (terms["error"].sum / terms["error"].weight).item() == pytest.approx((0.4 + 0.8) / 2, abs=1e-9)
    preference = (terms["preference"].sum / terms["preference"].weight).item()
    assert preference == pytest.approx(0.3 * (nll(margins[0]) + nll(margins[1])) / 2, abs=1e-9)


def test_mapos_gradient_equals_that_of_the_formula_by_finite_differences():
    def loss(better: float, worse: float) -> float:
        return better + 0.1 * nll(1000 * (fitness(better, 0.5) - fitness(worse, 0.5)))

    scores = errors((0.7,), (0.7001,))
    grad = gradient(loss_of(MaPO(), scores, None, feedback_of(pair())), scores)[:, 0, 0]
    step = 1e-6
    by_better = (loss(0.7 + step, 0.7001) - loss(0.7 - step, 0.7001)) / (2 * step)
    by_worse = (loss(0.7, 0.7001 + step) - loss(0.7, 0.7001 - step)) / (2 * step)
    assert grad.tolist() == pytest.approx([-2 * by_better, -2 * by_worse], rel=1e-5)  # error = -2 * score


@pytest.mark.parametrize("error", [0.0, 1e-9, 1e-4, 1.999e-3, 2.001e-3, 300.0, 5000.0])
def test_fitness_and_its_gradient_are_finite_at_both_ends(error: float):
    """s(e) = 1 - x/2 + x^2/12 + O(x^4) near 0, 0 far out; its slope is -gamma / 2 at 0."""
    scores = errors((error,), (1.0,))
    loss = loss_of(MaPO(MaPOConfig(steps=1.0, beta=1.0)), scores, None, feedback_of(pair()))
    x = 0.5 * error
    value = 1 - x / 2 + x * x / 12 if x < 1e-2 else x * math.exp(-x)
    assert loss.item() == pytest.approx(error + nll(value - fitness(1.0, 0.5)), rel=1e-9)
    assert gradient(loss, scores).isfinite().all()


def test_mapo_weighs_edges_and_takes_margins():
    feedback = feedback_of(example(3, [Edge(0, 1, weight=3.0), Edge(2, 1, weight=1.0, margin=0.5)]))
    terms = terms_of(MaPO(MaPOConfig(beta=1.0, steps=1.0)), errors((0.4,), (1.0,), (0.8,)), None, feedback)
    assert (terms["error"].sum / terms["error"].weight).item() == pytest.approx((3 * 0.4 + 0.8) / 4, abs=1e-9)
    first, second = fitness(0.4, 0.5) - fitness(1.0, 0.5), fitness(0.8, 0.5) - fitness(1.0, 0.5) - 0.5
    expected = (3 * nll(first) + nll(second)) / 4
    assert (terms["preference"].sum / terms["preference"].weight).item() == pytest.approx(expected, abs=1e-7)


def predicted(seed: int = 0, draws: int = 2) -> tuple[Scores, Scores]:
    """Policy and reference scores made from random predictions of 2 x 3 numbers, and the target of each draw."""
    generator = torch.Generator().manual_seed(seed)
    policy, frozen, target = (torch.randn(2, draws, 2, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    policy.requires_grad_()

    def scored(prediction: torch.Tensor) -> Scores:
        score = -0.5 * (prediction - target).square().flatten(2).mean(-1)[..., None]
        mask, kind = torch.ones_like(score, dtype=torch.bool), torch.full((2, 1), int(Kind.DENOISING))
        return Scores(score, mask, kind, {"predictions": prediction, "targets": target})

    return scored(policy), scored(frozen)


@pytest.mark.parametrize("gate_beta", [None, 3.0])
def test_dspo_moves_the_target_by_the_gated_change(gate_beta: float | None):
    """Written out draw by draw, number by number; the gradient runs through the gate, as numpy-like differences show."""
    config = DSPOConfig(beta=0.7, gate_beta=gate_beta)
    scores, reference = predicted()
    prediction, target, frozen = scores.extras["predictions"], scores.extras["targets"], reference.extras["predictions"]

    def written_out(better: torch.Tensor, worse: torch.Tensor) -> float:
        total = 0.0
        for draw in range(2):

            def change(now: torch.Tensor, sample: int, draw: int = draw) -> float:
                then = frozen[sample, draw]
                square = ((now - target[sample, draw]) ** 2).mean() - ((then - target[sample, draw]) ** 2).mean()
                return -0.5 * square.item()

            z = (gate_beta or 0.7) * (change(better[draw], 0) - change(worse[draw], 1))
            pulled = better[draw] - target[0, draw] - 0.7 * sigma(-z) * (better[draw] - frozen[0, draw])
            total += (pulled**2).mean().item() / 2
        return total

    loss = loss_of(DSPO(config), scores, reference, feedback_of(pair()))
    plain = prediction.detach()
    assert loss.item() == pytest.approx(written_out(plain[0], plain[1]), abs=1e-9)
    (grad,) = torch.autograd.grad(loss, prediction)
    for sample, place in ((0, (0, 0, 0)), (0, (1, 1, 2)), (1, (0, 1, 0))):
        step = torch.zeros_like(plain)
        step[(sample, *place)] = 1e-6
        up, down = plain + step, plain - step
        slope = (written_out(up[0], up[1]) - written_out(down[0], down[1])) / 2e-6
        assert grad[(sample, *place)].item() == pytest.approx(slope, abs=1e-7)


def test_dspo_at_the_reference_is_the_better_responses_error_and_the_gate_has_no_gradient():
    scores, _ = predicted()
    loss = loss_of(DSPO(DSPOConfig(beta=0.5)), scores, scores.detach(), feedback_of(pair()))
    assert loss.item() == pytest.approx(-2 * scores.log_probs[0].mean().item(), abs=1e-9)
    (grad,) = torch.autograd.grad(loss, scores.extras["predictions"])
    error = (scores.extras["predictions"] - scores.extras["targets"]).detach()
    torch.testing.assert_close(grad[0], (1 - 0.25) * 2 * error[0] / 12)  # beta sigma(0) = 1/4; 2 draws of 6 numbers
    assert grad[1].eq(0).all()


def test_dspo_knows_its_weights_before_the_forward_pass_and_asks_both_models_for_predictions():
    scores, reference = predicted()
    feedback = feedback_of(example(2, [Edge(0, 1, weight=3.0)]))
    objective = DSPO()
    weight = objective.weights(scores.mask, scores.kind, feedback)["preference"]
    assert weight.item() == terms_of(objective, scores, reference, feedback)["preference"].weight.item() == 3.0
    assert objective.wants == objective.reference_wants == {"predictions"}
    assert WeightedSum(CRPOConfig(terms=["dspo", "sft"])).reference_wants == {"predictions"}


def test_dspo_of_split_batches_adds_up():
    """Two pairs in one batch are the mean of each alone."""
    (first, first_reference), (second, second_reference) = predicted(0), predicted(1)

    def joined(one: Scores, other: Scores) -> Scores:
        extras = {name: torch.cat([one.extras[name], other.extras[name]]) for name in one.extras}
        parts = (torch.cat([getattr(one, name), getattr(other, name)]) for name in ("log_probs", "mask", "kind"))
        return Scores(*parts, extras)

    both = loss_of(DSPO(), joined(first, second), joined(first_reference, second_reference), feedback_of(pair(), pair()))
    alone = [
        loss_of(DSPO(), one, ref, feedback_of(pair())).item()
        for one, ref in ((first, first_reference), (second, second_reference))
    ]
    assert both.item() == pytest.approx(sum(alone) / 2, abs=1e-9)


def test_tdpo_is_dpo_on_the_columns_alone():
    """Samples (x1, y1), (x1, y2), (x2, y1), (x2, y2); columns: 0 over 2, 3 over 1."""
    now, then = [(0.4,), (0.9,), (0.8,), (0.5,)], [(0.5,), (0.5,), (0.5,), (0.7,)]
    change = [-0.5 * (a[0] - b[0]) for a, b in zip(now, then, strict=True)]
    loss = loss_of(TDPO(TDPOConfig(beta=5.0)), errors(*now), errors(*then), feedback_of(grid()))
    expected = (nll(5 * (change[0] - change[2])) + nll(5 * (change[3] - change[1]))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    rows_only = loss_of(DPO(DPOConfig(beta=5.0)), errors(*now), errors(*then), feedback_of(grid()))
    assert abs(loss.item() - rows_only.item()) > 1e-3


def test_tdpo_learns_from_records_of_one_response_under_two_prompts_in_the_pairs_view():
    record = prompts_and_responses("r", [("fits", "y"), ("does not", "y")], Comparison(ranking=(0, 1)))
    feedback = feedback_of(*VIEWS["pairs"](record, None))
    terms = terms_of(TDPO(TDPOConfig(beta=5.0)), errors((0.4,), (0.9,)), errors((0.5,), (0.5,)), feedback)
    assert (terms["preference"].sum.item(), terms["preference"].weight.item()) == (pytest.approx(nll(5 * 0.25)), 1.0)


def test_tdpo_has_nothing_to_learn_from_pairs_of_responses():
    terms = terms_of(TDPO(), errors(BETTER, WORSE), errors(BETTER, WORSE), feedback_of(pair()))
    assert (terms["preference"].sum.item(), terms["preference"].weight.item()) == (0.0, 0.0)


def test_crpo_is_flow_dpo_and_the_better_responses_mean_error():
    """TangoFlux: -log sigma(-beta / 2 * ((e_w - ref_w) - (e_l - ref_l))) + mean e_w, draw by draw."""
    scores, reference = errors(BETTER, WORSE), errors(BETTER_REFERENCE, WORSE_REFERENCE)
    differences = [(b - br) - (w - wr) for b, br, w, wr in zip(BETTER, BETTER_REFERENCE, WORSE, WORSE_REFERENCE, strict=True)]
    expected = sum(nll(-0.5 * 2000 * d) if -1000 * d > -500 else 1000 * d for d in differences) / 2 + (0.4 + 0.8) / 2
    assert loss_of(WeightedSum(CRPOConfig()), scores, reference, feedback_of(pair())).item() == pytest.approx(expected, abs=1e-6)


def rated(*values: tuple[float, ...], **aspects: tuple[float, ...]) -> object:
    ratings = [Rated(n, value) for n, given in enumerate(values) for value in given]
    ratings += [Rated(n, value, aspect) for aspect, given in aspects.items() for n, value in enumerate(given)]
    count = max(rating.sample for rating in ratings) + 1
    return feedback_of(replace(example(count + 1), ratings=tuple(ratings)))  # the last sample has no rating


def test_rwr_imitates_by_exponential_weight():
    """Ratings 1, 1/2 (two annotators: 0.25, 0.75) and 0; the fourth response is not rated."""
    feedback = rated((1.0,), (0.25, 0.75), (0.0,))
    weights = [math.exp(2), math.exp(1), 1.0]
    nlls, lengths = [3.0, 1.0, 4.0], [2, 1, 3]
    scores = scores_of([[[-1.0, -2.0]], [[-1.0]], [[-1.0, -2.0, -1.0]], [[-5.0]]])
    loss = loss_of(RWR(RWRConfig(temperature=0.5)), scores, None, feedback)
    expected = sum(w * n for w, n in zip(weights, nlls, strict=True)) / sum(w * n for w, n in zip(weights, lengths, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert gradient(loss, scores)[3].eq(0).all()


def test_rwr_is_the_best_policy_under_a_kl_penalty_to_the_data():
    """A categorical policy over three responses drawn equally often: minimising the loss gives pi = exp(r / T) / Z."""
    feedback, temperature = rated((1.0,), (0.4,), (0.0,)), 0.3
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    mask, kind = torch.ones(4, 1, 1, dtype=torch.bool), torch.zeros(4, 1, dtype=torch.long)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        log_probs = torch.cat([logits.log_softmax(0), torch.zeros(1, dtype=torch.float64)])[:, None, None]
        value = loss_of(RWR(RWRConfig(temperature=temperature)), Scores(log_probs, mask, kind), None, feedback)
        value.backward()
        return value

    optimizer.step(loss)
    weights = torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64).div(temperature).exp()
    torch.testing.assert_close(logits.detach().softmax(0), weights / weights.sum(), atol=1e-5, rtol=1e-5)


def test_lift_maps_good_normal_and_bad_per_aspect_and_averages():
    """(good, normal, bad): mean of 0.9, 0.2, 0.05; (bad, bad, normal): of 0.05, 0.05, 0.2. 0.75 is halfway to good: 0.55."""
    feedback = rated(semantics=(1.0, 0.0, 0.75), motion=(0.5, 0.0, 0.75), fidelity=(0.0, 0.5, 0.75))
    weights = RWR(RWRConfig(weighting="lift")).response_weights(feedback)
    torch.testing.assert_close(weights, torch.tensor([1.15 / 3, 0.3 / 3, 0.55, 0.0]))


def test_linear_weights_and_aspect_weights():
    feedback = rated(semantics=(1.0, 0.0), motion=(0.5, 0.25))
    plain = RWR(RWRConfig(weighting="linear")).response_weights(feedback)
    torch.testing.assert_close(plain, torch.tensor([0.75, 0.125, 0.0]))
    weighted = RWR(RWRConfig(weighting="linear", aspect_weights={"semantics": 0.0})).response_weights(feedback)
    torch.testing.assert_close(weighted, torch.tensor([0.5, 0.25, 0.0]))


def test_rwr_weighs_denoising_errors_by_half():
    loss = loss_of(RWR(RWRConfig(weighting="linear")), errors((0.4, 0.8), (1.0, 0.6), (9.0, 9.0)), None, rated((1.0,), (0.5,)))
    assert loss.item() == pytest.approx(0.5 * (1.0 * (0.4 + 0.8) + 0.5 * (1.0 + 0.6)) / (2 * 1.5), abs=1e-6)


LABELLED = feedback_of(example(1, labels=(1,)), example(1, labels=(-1,)))
COSTS = {
    "kahneman_tversky": (lambda x: 1 - sigma(x), 0.5),
    "loss_averse": (lambda x: 1 - math.log(sigma(x)), 1 + math.log(2)),
    "risk_seeking": (lambda x: 1 + math.log(sigma(-x)), 1 - math.log(2)),
}


@pytest.mark.parametrize("utility", COSTS)
def test_diffusion_kto_costs_one_minus_the_utility_of_the_gain(utility: str):
    """The authors' log-ratio is ``-(e - e_ref)`` and their beta 3 here; ours is half of it, so beta is 6. z0: the batch's mean.

    Good: gains 0.3, -0.1 over draws; bad: 0.5, 0.1. Their mean, 0.2, is z0.
    """
    scores, reference = errors((0.3, 0.7), (0.3, 0.7)), errors((0.6, 0.6), (0.8, 0.8))
    objective = KTO(DiffusionKTOConfig(beta=6.0, utility=utility, undesirable_weight=0.5))
    cost, _ = COSTS[utility]
    good = sum(cost(3 * (g - 0.2)) for g in (0.3, -0.1)) / 2
    bad = sum(cost(-3 * (g - 0.2)) for g in (0.5, 0.1)) / 2
    assert loss_of(objective, scores, reference, LABELLED).item() == pytest.approx((good + 0.5 * bad) / 2, abs=1e-6)


@pytest.mark.parametrize("utility", COSTS)
def test_diffusion_kto_at_the_reference(utility: str):
    objective = KTO(DiffusionKTOConfig(utility=utility))
    loss = loss_of(objective, errors(BETTER, WORSE), errors(BETTER, WORSE), LABELLED)
    assert loss.item() == pytest.approx(COSTS[utility][1], abs=1e-9) == pytest.approx(objective.value_at_reference)


def test_kto_keeps_its_own_utility_and_an_unknown_one_is_refused():
    assert KTOConfig().utility == DiffusionKTOConfig().utility == "kahneman_tversky"
    with pytest.raises(ValidationError, match="utility"):
        DiffusionKTOConfig(utility="indifferent")
