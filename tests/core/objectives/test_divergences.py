"""f-DPO's implicit rewards: what they are worth, against the problem they are the solution of."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from toys.scored import feedback_of, gradient, loss_of, pair, scores_of

from polyalign.objectives.config import DPOConfig, FDPOConfig, HingeConfig, IPOConfig
from polyalign.objectives.divergences import implicit_reward, power
from polyalign.objectives.pairwise import DPO

ALPHA = 0.4
NAMES = ["reverse_kl", "forward_kl", "js", "alpha"]
each = pytest.mark.parametrize("name", NAMES)

# The textbook: f(u), its derivative, and the derivative's inverse.
F: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda u: u * u.log(),
    "forward_kl": lambda u: -u.log(),
    "js": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "alpha": lambda u: (u ** (1 - ALPHA) - (1 - ALPHA) * u - ALPHA) / (ALPHA * (ALPHA - 1)),
}
SLOPE: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda u: u.log() + 1,
    "forward_kl": lambda u: -1 / u,
    "js": lambda u: (2 * u / (1 + u)).log(),
    "alpha": lambda u: (1 - u**-ALPHA) / ALPHA,
}
INVERSE: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": lambda s: (s - 1).exp(),
    "forward_kl": lambda s: -1 / s,
    "js": lambda s: s.exp() / (2 - s.exp()),
    "alpha": lambda s: (1 - ALPHA * s) ** (-1 / ALPHA),
}
SUPREMUM = {"reverse_kl": math.inf, "forward_kl": 0.0, "js": math.log(2), "alpha": 1 / ALPHA}
ACTIONS, BETA = 6, 0.7


def problem() -> tuple[Tensor, Tensor]:
    """A random reward and reference policy over six actions."""
    generator = torch.Generator().manual_seed(3)
    reward = torch.randn(ACTIONS, dtype=torch.float64, generator=generator)
    return reward, torch.randn(ACTIONS, dtype=torch.float64, generator=generator).softmax(0)


def optimal(name: str) -> Tensor:
    """pi = pi_ref * (f')^-1((r - c) / beta), with c by bisection so that pi adds up to 1 (the KKT conditions)."""
    reward, reference = problem()
    low = (reward.max() - BETA * min(SUPREMUM[name], 1e3)).item() + 1e-13
    high = low + 1e4
    for _ in range(200):
        middle = (low + high) / 2
        mass = (reference * INVERSE[name]((reward - middle) / BETA)).sum().item()
        low, high = (middle, high) if mass > 1 or math.isnan(mass) else (low, middle)
    return reference * INVERSE[name]((reward - high) / BETA)


@each
def test_derivatives_and_inverses_of_this_test_are_right(name: str):
    u = torch.tensor([0.1, 0.5, 1.0, 1.7, 9.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F[name](u).sum(), u)
    torch.testing.assert_close(slope, SLOPE[name](u).detach())
    torch.testing.assert_close(INVERSE[name](SLOPE[name](u)), u)


@each
def test_the_reward_is_the_derivative_of_the_divergence_but_for_a_constant(name: str):
    u = torch.tensor([0.01, 0.5, 1.0, 1.7, 90.0], dtype=torch.float64)
    constant = SLOPE[name](torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(implicit_reward(u.log(), name, ALPHA), SLOPE[name](u) - constant, atol=1e-12, rtol=1e-12)


@each
def test_the_optimal_policy_gives_the_reward_back(name: str):
    reward, reference = problem()
    policy = optimal(name)
    assert policy.sum().item() == pytest.approx(1.0, abs=1e-12)
    found = BETA * implicit_reward((policy / reference).log(), name, ALPHA)
    torch.testing.assert_close(found - found[0], reward - reward[0], atol=1e-12, rtol=0)


@each
def test_a_general_optimiser_of_the_penalised_reward_finds_the_same_policy(name: str):
    reward, reference = problem()
    logits = reference.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        policy = logits.softmax(0)
        value = -(policy * reward).sum() + BETA * (reference * F[name](policy / reference)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(logits.detach().softmax(0), optimal(name), atol=1e-4, rtol=0)


def test_reverse_kl_is_dpo_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=generator) * 50
    assert torch.equal(implicit_reward(x, "reverse_kl", ALPHA), x)


def test_alpha_lies_between_the_two_kullback_leibler_divergences():
    x = torch.linspace(-9.9, 9.9, 41, dtype=torch.float64)
    torch.testing.assert_close(implicit_reward(x, "alpha", 1e-5), x, atol=1e-3, rtol=0)
    torch.testing.assert_close(power(x, 1.0), implicit_reward(x, "forward_kl", ALPHA), atol=0, rtol=0)
    torch.testing.assert_close(power(x, 0.0), x)


@each
def test_winners_far_above_the_reference_stop_paying(name: str):
    x = torch.tensor([1e4], dtype=torch.float64, requires_grad=True)
    value = implicit_reward(x, name, ALPHA)
    most = {"reverse_kl": 1e4, "forward_kl": 1.0, "js": math.log(2), "alpha": 1 / ALPHA}[name]
    assert value.item() == pytest.approx(most, rel=1e-12)
    (slope,) = torch.autograd.grad(value, x)
    assert slope.item() == (1.0 if name == "reverse_kl" else 0.0)


@each
def test_gradients_are_those_of_the_values(name: str):
    x = torch.tensor([-30.0, -3.0, -0.1, 0.0, 0.1, 3.0, 30.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(implicit_reward(x, name, ALPHA).sum(), x)
    step = 1e-6
    ends = [implicit_reward(x.detach() + sign * step, name, ALPHA) for sign in (1, -1)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), atol=1e-6, rtol=1e-5)


@each
@pytest.mark.parametrize("link", [FDPOConfig, HingeConfig, IPOConfig])
def test_every_link_stays_finite_in_float32_at_log_ratios_of_ten_thousand(name: str, link: type[DPOConfig]):
    """Losers far above and winners far below the reference; IPO squares what forward_kl makes of them."""
    scores = scores_of([[[x]] for x in (-1e4, 1e4, 1e4, -1e4, -1e4, -1e4)])
    scores.log_probs = scores.log_probs.detach().float().requires_grad_()
    reference = scores_of([[[0.0]]] * 6)
    reference.log_probs = reference.log_probs.detach().float()
    loss = loss_of(DPO(link(beta=0.1, divergence=name)), scores, reference, feedback_of(*[pair()] * 3))
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, scores)).all()


def test_the_reward_of_a_whole_response_is_divided_by_its_length_not_taken_of_its_mean():
    """Log-ratios 0.4 over 2 tokens and -0.3 over 3: g(0.4) / 2 - g(-0.3) / 3, as TRL does."""
    scores = scores_of([[[0.1, 0.3]], [[-0.1, -0.1, -0.1]]])
    reference = scores_of([[[0.0, 0.0]], [[0.0, 0.0, 0.0]]])
    loss = loss_of(DPO(DPOConfig(beta=3, reduction="mean", divergence="forward_kl")), scores, reference, feedback_of(pair()))
    z = 3 * ((1 - math.exp(-0.4)) / 2 - (1 - math.exp(0.3)) / 3)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-z)), abs=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_alpha_outside_of_the_open_interval_is_refused(alpha: float):
    with pytest.raises(ValidationError, match="alpha"):
        FDPOConfig(divergence="alpha", alpha=alpha)
