"""DiffusionNFT and AWM on rollouts of a linear denoiser: against their equations, written out, and closed-form gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toys.denoiser import LinearDenoiser

from polyalign.errors import TrainingError
from polyalign.objectives.base import Experience, FeedbackTensors, Objective
from polyalign.objectives.online_denoising_config import AWMConfig, DiffusionNFTConfig
from polyalign.objectives.solver_free import AWM, DiffusionNFT
from polyalign.policies.base import Scores
from polyalign.policies.reference import FrozenCopy
from polyalign.records.schema import Message
from polyalign.training.batches import MicroBatch
from polyalign.training.rollouts import Group, collate_groups
from polyalign.training.window import WindowLoss

PROMPTS = [(Message(role="user", parts=text),) for text in ("draw", "draw more")]
REWARDS = [[0.0, 1.0, 2.0, 5.0], [3.0, 3.0, 1.0, 0.5]]
WANT = frozenset({"predictions"})


def micro_batches(policy: LinearDenoiser, objective: Objective, kind: str = "ode", size: int = 2) -> list[MicroBatch]:
    """Return the appraised rollouts of two groups of four, ``size`` groups per micro-batch."""
    rollouts = policy.generate(PROMPTS, samples_per_prompt=4, seed=1, sampler={"steps": 4, "kind": kind})
    groups = [Group(f"r{n}", rollouts[4 * n : 4 * n + 4], tuple(REWARDS[n]), {}) for n in range(2)]
    micros = [collate_groups(groups[at : at + size], policy.collator, "best_worst", 1) for at in range(0, 2, size)]
    whole = collate_groups(groups, policy.collator, "best_worst", 1)
    done = objective.appraise(whole.feedback.experience, whole.batch.mask, whole.feedback.group)
    for number, micro in enumerate(micros):
        rows = torch.arange(4 * size) + 4 * size * number
        micro.feedback.experience = done.rows(rows, 1)
    return micros


def moved(policy: LinearDenoiser) -> LinearDenoiser:
    with torch.no_grad():
        policy.layer.weight.add_(0.05 * torch.eye(4))
        policy.layer.bias.sub_(0.1)
    return policy


def loss_of(
    objective: Objective, scores: Scores, feedback: FeedbackTensors, references: dict[str, Scores] | None = None
) -> Tensor:
    terms = objective(scores, references or {}, feedback)
    return sum(term.sum / term.weight for term in terms.values())


@pytest.mark.parametrize("schedule", ["epsilon", "v_prediction", "flow"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nft_is_its_equation_on_clean_latents(schedule: str, adaptive: bool, beta: float) -> None:
    """Written out as published: clean latents by the formulas of each kind of prediction, one response and draw at a time."""
    policy = LinearDenoiser(schedule, draws=2)
    objective = DiffusionNFT(DiffusionNFTConfig(beta=beta, adaptive=adaptive, advantage_clip=2.0))
    (micro,) = micro_batches(policy, objective)
    scores = moved(policy)(micro.batch, WANT)
    group, schedule_ = micro.batch.tensors["groups"][0], policy.schedule
    rewards = torch.tensor(REWARDS).flatten().double()
    means = torch.tensor(REWARDS).mean(1).repeat_interleave(4).double()
    advantages = (rewards - means) / ((rewards - means).std() + 1e-4)
    total = 0.0
    for row in range(8):
        r = (advantages[row] / 4 + 0.5).clamp(0, 1)
        clean = group["clean"][row, 0]
        for d in range(2):
            level = group["level"][row, d]
            signal, noise = schedule_.signal[level], schedule_.noise[level]
            y = schedule_.add_noise(clean, group["noise"][row, d], level)
            new, old = scores.extras["predictions"][row, d], scores.extras["old_predictions"][row, d]

            def implied(p: Tensor, y: Tensor = y, signal: Tensor = signal, noise: Tensor = noise) -> Tensor:
                by_kind = {"epsilon": (y - noise * p) / signal, "v_prediction": signal * y - noise * p, "flow": y - noise * p}
                return by_kind[schedule]

            def error(p: Tensor, clean: Tensor = clean) -> Tensor:
                difference = implied(p) - clean
                return difference.square().mean() / (difference.abs().mean() if adaptive else 1.0)

            total += (r * error((1 - beta) * old + beta * new) + (1 - r) * error((1 + beta) * old - beta * new)) * 2.0 / beta / 2
    assert float(loss_of(objective, scores, micro.feedback)) == pytest.approx(float(total / 8), rel=2e-4)


def test_nft_gradient_at_the_old_policy_is_advantage_weighted_matching() -> None:
    """Without adaptive weights and on a flow: mean of A * grad of the clean latents' squared error, whatever beta and c are."""
    gradients = []
    for beta, clip in ((1.0, 5.0), (0.1, 50.0)):
        policy = LinearDenoiser("flow", draws=2)
        objective = DiffusionNFT(DiffusionNFTConfig(beta=beta, adaptive=False, advantage_clip=clip))
        (micro,) = micro_batches(policy, objective)
        loss_of(objective, policy(micro.batch, WANT), micro.feedback).backward()
        gradients.append(policy.layer.weight.grad.clone())
        policy.zero_grad()
        scores = policy(micro.batch, WANT)
        error = scores.extras["clean_scale"].square() * (scores.extras["predictions"] - scores.extras["targets"]).square().mean(
            -1
        )
        (micro.feedback.experience.advantages[:, None] * error).mean().backward()
        torch.testing.assert_close(gradients[-1], policy.layer.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("r", "zero"), [(0.5, True), (0.8, False)])
def test_nft_at_the_old_policy_learns_nothing_from_an_average_response(r: float, zero: bool) -> None:
    policy = LinearDenoiser("flow")
    objective = DiffusionNFT()
    (micro,) = micro_batches(policy, objective)
    micro.feedback.experience.advantages = torch.full((8,), (r - 0.5) * 10)
    loss_of(objective, policy(micro.batch, WANT), micro.feedback).backward()
    assert bool((policy.layer.weight.grad.abs() < 1e-7).all()) == zero


def test_awm_is_the_clipped_surrogate_on_matching_losses() -> None:
    """-min(rho A, clip(rho) A) with rho = exp(old loss - new loss), one response and draw at a time."""
    policy = LinearDenoiser("flow", draws=2)
    objective = AWM(AWMConfig(clip_low=0.01, clip_high=0.02))
    (micro,) = micro_batches(policy, objective)
    old = -2 * micro.feedback.experience.old_log_probs[:, :, 0]
    scores = moved(policy)(micro.batch, WANT)
    new = (scores.extras["predictions"] - scores.extras["targets"]).square().mean(-1)
    advantages = micro.feedback.experience.advantages
    total = 0.0
    for row in range(8):
        for d in range(2):
            rho, a = float((old - new)[row, d].exp()), float(advantages[row])
            total -= min(rho * a, min(max(rho, 0.99), 1.02) * a) / 2
    assert float(loss_of(objective, scores, micro.feedback)) == pytest.approx(total / 8, rel=1e-4)


def test_awm_gradient_at_the_old_policy_is_the_advantage_times_that_of_the_matching_loss() -> None:
    policy = LinearDenoiser("epsilon", draws=3)
    objective = AWM()
    (micro,) = micro_batches(policy, objective)
    loss_of(objective, policy(micro.batch, WANT), micro.feedback).backward()
    ours = policy.layer.weight.grad.clone()
    policy.zero_grad()
    scores = policy(micro.batch, WANT)
    matching = (scores.extras["predictions"] - scores.extras["targets"]).square().mean(-1).mean(1)
    (micro.feedback.experience.advantages * matching).mean().backward()
    torch.testing.assert_close(ours, policy.layer.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "name", "weight"),
    [
        (DiffusionNFT(DiffusionNFTConfig(kl_weight=0.3)), "kl", 0.3),
        (AWM(AWMConfig(prediction_weight=0.3)), "reference_distance", 0.3),
    ],
)
def test_distance_to_the_reference_is_the_mean_squared_one(objective: Objective, name: str, weight: float) -> None:
    policy = LinearDenoiser("flow")
    reference = FrozenCopy(policy)
    (micro,) = micro_batches(policy, objective)
    assert "reference" in objective.needs and objective.reference_wants == WANT
    there = reference(micro.batch, WANT)
    scores = moved(policy)(micro.batch, WANT)
    term = objective(scores, {"reference": there}, micro.feedback)[name]
    expected = weight * (scores.extras["predictions"] - there.extras["predictions"]).square().mean()
    torch.testing.assert_close(term.sum / term.weight, expected)
    window = WindowLoss(policy, reference, objective, "cpu")
    values = window.train([micro], lambda loss, last: loss.backward())
    assert values[f"loss/{name}"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("objective", [DiffusionNFT(), AWM(AWMConfig(old_prediction_weight=0.1))], ids=["nft", "awm"])
def test_splitting_a_window_changes_nothing(objective: Objective) -> None:
    gradients = []
    for size in (2, 1):
        policy = LinearDenoiser("flow", draws=2)
        micros = micro_batches(policy, objective, size=size)
        window = WindowLoss(moved(policy), None, objective, "cpu")
        values = window.train(micros, lambda loss, last: loss.backward())
        gradients.append((values, policy.layer.weight.grad))
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-5, atol=1e-7)
    for name, value in gradients[0][0].items():
        assert gradients[1][0][name] == pytest.approx(value, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("objective", [DiffusionNFT(), AWM()], ids=["nft", "awm"])
def test_samples_without_experience_cost_nothing(objective: Objective) -> None:
    policy = LinearDenoiser("flow")
    (micro,) = micro_batches(policy, objective)
    feedback = replace(micro.feedback, experience=None)
    terms = objective(policy(micro.batch, WANT), {}, feedback)
    assert {name: (float(term.sum), float(term.weight)) for name, term in terms.items()} == {"policy": (0.0, 0.0)}
    assert all(float(term.weight) == 0 for term in objective.metrics(policy(micro.batch, WANT), {}, feedback).values())


@pytest.mark.parametrize("objective", [DiffusionNFT(), AWM()], ids=["nft", "awm"])
def test_six_rounds_raise_a_reward(objective: Objective) -> None:
    """The reward is the response's first number; without a gradient of its own."""
    policy = LinearDenoiser("flow", draws=4)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)

    def round_of(seed: int) -> tuple[MicroBatch, float]:
        rollouts = policy.generate(PROMPTS, samples_per_prompt=16, seed=seed, sampler={"steps": 6, "kind": "ode"})
        rewards = [float(rollout.output.split()[0]) for rollout in rollouts]
        groups = [Group(f"r{n}", rollouts[16 * n : 16 * n + 16], tuple(rewards[16 * n : 16 * n + 16]), {}) for n in range(2)]
        micro = collate_groups(groups, policy.collator, "best_worst", 1)
        micro.feedback.experience = objective.appraise(micro.feedback.experience, micro.batch.mask, micro.feedback.group)
        return micro, sum(rewards) / len(rewards)

    window = WindowLoss(policy, None, objective, "cpu")
    means = []
    for seed in range(12):
        micro, mean = round_of(seed)
        means.append(mean)
        window.train([micro], lambda loss, last: loss.backward())
        optimizer.step()
        optimizer.zero_grad()
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.1


def test_samples_that_are_no_rollouts_are_refused() -> None:
    from toys.denoiser import sample

    policy = LinearDenoiser("flow")
    batch = policy.collate([sample("1 0 0 1")])
    feedback = FeedbackTensors.of([])
    feedback.experience = Experience(torch.zeros(1), torch.zeros(1))
    with pytest.raises(TrainingError, match="these samples are no rollouts"):
        DiffusionNFT()(policy(batch, WANT), {}, feedback)


def test_likelihood_penalties_are_refused() -> None:
    with pytest.raises(ValueError, match="use prediction_weight"):
        AWMConfig(kl_weight=0.1)
