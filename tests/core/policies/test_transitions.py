"""Rollouts of denoising policies: what they decide, and that scoring them again gives the same numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal
from toys.denoiser import SIZE, LinearDenoiser

from polyalign.errors import TrainingError
from polyalign.policies.base import Kind, Noised, Rollout, Transition
from polyalign.policies.reference import FrozenCopy
from polyalign.records.schema import Message

PROMPTS = [(Message(role="user", parts=text),) for text in ("draw", "draw more")]
KINDS = [("epsilon", "ddim"), ("v_prediction", "ddim"), ("flow", "sde"), ("flow", "dance"), ("flow", "cps")]


def drawn(policy: LinearDenoiser, seed: int = 3, **sampler: object) -> tuple[Rollout, ...]:
    return policy.generate(PROMPTS, samples_per_prompt=2, seed=seed, sampler={"steps": 5, **sampler})


@pytest.mark.parametrize(("schedule", "kind"), KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ratios_are_one_at_unchanged_weights(schedule: str, kind: str, reduction: str, guidance: float) -> None:
    policy = LinearDenoiser(schedule, reduction=reduction)
    rollouts = drawn(policy, kind=kind, guidance=guidance)
    scores = policy(policy.collator.of_rollouts(rollouts))
    old = torch.stack([rollout.old_log_probs for rollout in rollouts])
    assert scores.kind.unique().tolist() == [int(Kind.TRANSITION)] and scores.mask.all()
    torch.testing.assert_close((scores.log_probs[:, 0] - old).exp(), torch.ones_like(old), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("schedule", "kind"), KINDS)
def test_densities_are_those_of_the_normal_around_the_guided_mean(schedule: str, kind: str) -> None:
    """Recomputed step by step, without batches, under other weights than those that drew."""
    policy = LinearDenoiser(schedule, reduction="sum")
    rollouts = drawn(policy, kind=kind, guidance=2.5)
    with torch.no_grad():
        policy.layer.weight.mul_(0.7)
    scores = policy(policy.collator.of_rollouts(rollouts))
    for row, rollout in enumerate(rollouts):
        embedding = len(rollout.prompt[0].parts[0].text) / 10
        for position, step in enumerate(rollout.decisions):
            assert isinstance(step, Transition)
            without = policy.layer(step.x_t) + step.t / 100
            guided = without + 2.5 * embedding
            density = Normal(step.state * step.x_t + step.prediction * guided, step.std).log_prob(step.x_next).sum()
            torch.testing.assert_close(scores.log_probs[row, 0, position], density, rtol=1e-4, atol=1e-4)


def test_transitions_form_one_chain_that_ends_in_the_response() -> None:
    policy = LinearDenoiser("flow")
    for rollout in drawn(policy, kind="sde"):
        steps = rollout.decisions
        assert len(steps) == 4  # the fifth step is deterministic
        for before, after in pairwise(steps):
            assert torch.equal(before.x_next, after.x_t)
        numbers = torch.tensor([float(word) for word in rollout.output.split()])
        last = steps[-1].x_next
        level = policy.sampling_grid(5).noise[4]
        velocity = policy.layer(last) + policy.sampling_grid(5).timesteps[4] / 100 + len(rollout.prompt[0].parts[0].text) / 10
        torch.testing.assert_close(numbers, 2 * (last - level * velocity), rtol=0, atol=2e-3)


def test_without_noise_rollouts_are_the_deterministic_ones() -> None:
    policy = LinearDenoiser("flow")
    assert [r.output for r in drawn(policy, kind="sde", noise_level=0.0)] == [r.output for r in drawn(policy, kind="ode")]
    assert [r.output for r in drawn(policy, kind="sde")] != [r.output for r in drawn(policy, kind="ode")]


def test_noise_depends_on_prompt_and_number_only() -> None:
    policy = LinearDenoiser("flow")
    together = drawn(policy, kind="sde")
    one_by_one = drawn(policy, kind="sde", batch_size=1)
    alone = policy.generate(PROMPTS[1:], seed=3, sampler={"steps": 5, "kind": "sde"})
    assert [r.output for r in together] == [r.output for r in one_by_one]
    assert together[2].output == alone[0].output
    assert len({r.output for r in together}) == 4
    assert drawn(policy, seed=4, kind="sde")[0].output != together[0].output


def test_a_group_may_share_its_first_noise() -> None:
    policy = LinearDenoiser("flow")
    first, second, other, _ = drawn(policy, kind="sde", same_start=True)
    assert torch.equal(first.decisions[0].x_t, second.decisions[0].x_t)
    assert not torch.equal(first.decisions[0].x_t, other.decisions[0].x_t)
    assert not torch.equal(first.decisions[0].x_next, second.decisions[0].x_next)


def test_a_window_leaves_only_its_steps_as_decisions() -> None:
    policy = LinearDenoiser("flow")
    rollouts = drawn(policy, kind="sde", window={"size": 2, "start": 1})
    grid = policy.sampling_grid(5)
    assert [[step.t for step in r.decisions] for r in rollouts] == [list(grid.timesteps[1:3])] * 4


def test_rollouts_of_several_lengths_are_padded_and_each_prompt_is_kept_once() -> None:
    policy = LinearDenoiser("flow")
    rollouts = [*drawn(policy, kind="sde"), *drawn(policy, kind="sde", window={"size": 2, "start": 1})]
    batch = policy.collator.of_rollouts(rollouts)
    assert batch.mask[:, 0].sum(1).tolist() == [4, 4, 4, 4, 2, 2, 2, 2]
    assert batch.tensors["transitions"][0]["conditions"]["prompt"].shape[0] == 2
    scores = policy(batch)
    torch.testing.assert_close(scores.log_probs[scores.mask], torch.cat([r.old_log_probs for r in rollouts]))
    assert not scores.log_probs[~scores.mask].any()


def test_rows_at_once_change_memory_only() -> None:
    gradients = []
    for at_once in (None, 3):
        policy = LinearDenoiser("flow", rows_at_once=at_once)
        rollouts = drawn(policy, kind="sde", guidance=2.0)
        seen = policy.rows_denoised
        scores = policy(policy.collator.of_rollouts(rollouts))
        scores.log_probs.exp().sum().backward()
        gradients.append((scores.log_probs.detach(), policy.layer.weight.grad))
        assert policy.rows_denoised - seen == (32 if at_once is None else 64)  # 16 steps, twice for guidance; again for gradients
    for whole, parts in zip(*gradients):
        torch.testing.assert_close(whole, parts)


def test_the_reference_scores_transitions_too() -> None:
    policy = LinearDenoiser("flow")
    reference = FrozenCopy(policy)
    batch = policy.collator.of_rollouts(drawn(policy, kind="sde"))
    before = policy(batch).log_probs.detach()
    with torch.no_grad():
        policy.layer.bias.add_(0.3)
    torch.testing.assert_close(reference(batch).log_probs, before)
    assert (policy(batch).log_probs - before).abs().max() > 1e-3


# solver-free rollouts


@pytest.mark.parametrize("schedule", ["epsilon", "v_prediction", "flow"])
def test_ode_rollouts_keep_latents_draws_and_old_predictions(schedule: str) -> None:
    policy = LinearDenoiser(schedule, draws=3)
    rollouts = drawn(policy, kind="ode")
    batch = policy.collator.of_rollouts(rollouts)
    scores = policy(batch, frozenset({"predictions"}))
    assert scores.kind.unique().tolist() == [int(Kind.DENOISING)]
    torch.testing.assert_close(scores.log_probs[:, :, 0], torch.stack([r.old_log_probs for r in rollouts]))
    torch.testing.assert_close(scores.extras["old_predictions"], scores.extras["predictions"].detach())
    keys = {decision.key for rollout in rollouts for decision in rollout.decisions}
    assert len(keys) == 4  # every response has its own draws
    for row, rollout in enumerate(rollouts):
        numbers = torch.tensor([float(word) for word in rollout.output.split()]) / 2
        clean = rollout.decisions[0].clean
        torch.testing.assert_close(clean, numbers, rtol=0, atol=1e-3)
        for d, decision in enumerate(rollout.decisions):
            assert isinstance(decision, Noised)
            level, noise = int(decision.t), policy.collator.noise(decision.key, ("epoch 0", d), (SIZE,))
            torch.testing.assert_close(
                scores.extras["targets"][row, d], policy.schedule.target(clean, noise, torch.tensor(level)), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("schedule", ["epsilon", "v_prediction", "flow"])
def test_clean_scale_turns_an_error_of_the_prediction_into_one_of_the_clean_latents(schedule: str) -> None:
    """Solved for the clean latents by hand, per prediction kind."""
    s = LinearDenoiser(schedule).schedule
    level = torch.tensor([10, 50, 90])
    clean, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double().unbind()
    signal, amount = (table.double()[level][:, None] for table in (s.signal, s.noise))
    y = signal * clean + amount * noise
    target = {"epsilon": noise, "v_prediction": signal * noise - amount * clean, "flow": noise - clean}[schedule]
    p = target + 0.1
    implied = {"epsilon": (y - amount * p) / signal, "v_prediction": signal * y - amount * p, "flow": y - amount * p}[schedule]
    torch.testing.assert_close((implied - clean).abs().mean(1), 0.1 * s.clean_scale(level).double(), rtol=1e-4, atol=1e-6)


def test_solver_free_objectives_refuse_transitions_and_mixtures_are_named() -> None:
    policy = LinearDenoiser("flow")
    stepped, noised = drawn(policy, kind="sde"), drawn(policy, kind="ode")
    with pytest.raises(TrainingError, match="draw them by sampler.kind: ode"):
        policy(policy.collator.of_rollouts(stepped), frozenset({"predictions"}))
    with pytest.raises(TrainingError, match="Noised, Transition"):
        policy.collator.of_rollouts([stepped[0], noised[0]])
    with pytest.raises(TrainingError, match=r"NoneType.*generate\(sampler="):
        policy.collator.of_rollouts([replace(noised[0], decisions=())])


def test_drawing_leaves_training_mode_and_global_randomness_alone() -> None:
    policy = LinearDenoiser("flow")
    policy.train()
    state = torch.get_rng_state()
    rollouts = drawn(policy, kind="sde")
    assert policy.training and torch.equal(torch.get_rng_state(), state)
    assert all(math.isfinite(value) for r in rollouts for value in r.old_log_probs.tolist())
