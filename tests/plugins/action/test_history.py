"""The action policy's transformer: it acts on its last observations, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyalign.records.samples import Sample
from polyalign_action.config import ActionConfig
from polyalign_action.episodes import candidate_of
from polyalign_action.fixture import InMemory
from polyalign_action.history import Recent, windows_of
from polyalign_action.policy import ActionPolicy, build
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory

each_kind = pytest.mark.parametrize("name", ("CartPole-v1", "Pendulum-v1"))


def remembering(name: str, **settings: Any) -> ActionPolicy:
    """Return a policy of two blocks that sees four observations, and whose actions depend on them: at first they hardly do."""
    shape = {"network": "transformer", "hidden": (16, 16), "heads": 2, "history": 4, "max_steps": 15}
    policy = build(ActionConfig(environment=name, **shape | settings))
    with torch.no_grad():
        policy.actor[-1].weight.mul_(100)  # type: ignore[union-attr, operator]
        if policy.critic is not None:
            torch.nn.init.normal_(policy.critic[-1].weight)  # type: ignore[arg-type]
    return policy


def sample_of(trajectory: Trajectory, name: str = "s") -> Sample:
    media = InMemory()
    task = Task(trajectory.environment, trajectory.seed)
    return Sample(name, task.prompt(), candidate_of(trajectory, media.add).parts, name, media)


def log_probs(policy: ActionPolicy, trajectory: Trajectory) -> torch.Tensor:
    return policy(policy.collate([sample_of(trajectory)])).log_probs[0, 0]


def part(trajectory: Trajectory, start: int, end: int) -> Trajectory:
    return replace(
        trajectory,
        observations=trajectory.observations[start : end + 1],
        actions=trajectory.actions[start:end],
        rewards=trajectory.rewards[start:end],
    )


@each_kind
def test_rollouts_score_again_as_they_were_played(name: str) -> None:
    """Episodes of unequal length, by the rollouts' own batch and by way of the codec: 1e-5, as the batches differ."""
    policy = remembering(name, value_head=True)
    prompts = [Task(name, number).prompt() for number in range(3)]
    rollouts = policy.generate(prompts, samples_per_prompt=2, seed=5)
    for scores in (
        policy(policy.collator.of_rollouts(rollouts)),
        policy(policy.collate([sample_of(rollout.output) for rollout in rollouts])),
    ):
        for row, rollout in enumerate(rollouts):
            assert rollout.old_log_probs is not None
            steps = len(rollout.output)
            torch.testing.assert_close(scores.log_probs[row, 0, :steps], rollout.old_log_probs, rtol=0, atol=1e-5)
            assert not scores.log_probs[row, 0, steps:].any()


@each_kind
def test_scores_are_equal_however_episodes_are_batched(name: str) -> None:
    policy = remembering(name, value_head=True)
    whole = policy.generate([Task(name, 1).prompt()], seed=2)[0].output
    episodes = [part(whole, 0, steps) for steps in (len(whole), 1, 5)]
    wanted = frozenset({"entropy", "hidden", "states"})
    together = policy(policy.collate([sample_of(episode, f"s{n}") for n, episode in enumerate(episodes)]), wanted)
    for row, episode in enumerate(episodes):
        alone = policy(policy.collate([sample_of(episode)]), wanted)
        steps = len(episode)
        torch.testing.assert_close(together.log_probs[row, :, :steps], alone.log_probs[0], rtol=0, atol=1e-6)
        for extra in ("values", "entropy", "states"):
            torch.testing.assert_close(together.extras[extra][row, :steps], alone.extras[extra][0], rtol=0, atol=2e-6)
        torch.testing.assert_close(together.extras["hidden"][row], alone.extras["hidden"][0], rtol=0, atol=2e-6)


@each_kind
def test_a_step_is_scored_by_the_last_four_observations_alone(name: str) -> None:
    """An oracle that needs no windows: the episode cut so that it begins three steps before scores its last step alike. What was
    seen earlier, or comes later, changes nothing, while the oldest that is seen does."""
    policy = remembering(name)
    whole = policy.generate([Task(name, 3).prompt()], seed=4)[0].output
    assert len(whole) >= 8
    scores = log_probs(policy, whole)
    for step in range(len(whole)):
        cut = part(whole, max(0, step - 3), step + 1)
        torch.testing.assert_close(scores[step], log_probs(policy, cut)[-1], rtol=0, atol=1e-5)

    def changed_at(place: int) -> torch.Tensor:
        observations = whole.observations.copy()
        observations[place] += 0.5
        return (log_probs(policy, replace(whole, observations=observations)) - scores).abs() > 1e-6

    assert changed_at(2).nonzero().flatten().tolist() == [2, 3, 4, 5]


def test_windows_grow_while_playing_as_they_are_cut_when_scoring() -> None:
    """Two episodes, of which one ends after three steps; states before the beginning are 0 and say that they are none."""
    states = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    windows, recent = windows_of(states, 4), Recent(2, 4, 3, torch.device("cpu"))
    for step in range(5):
        running = [0, 1] if step < 3 else [1]
        torch.testing.assert_close(recent.push(states[running, step], running), windows[running, step], rtol=0, atol=0)
    assert windows[0, 1, :, -1].tolist() == [0, 0, 1, 1] and not windows[0, 1, :2].any()
    torch.testing.assert_close(windows[0, 4, :, :-1], states[0, 1:], rtol=0, atol=0)


def test_it_learns_what_only_memory_tells() -> None:
    """The right action is the side on which the cart stood two steps ago, in noise that says nothing of it later: a transformer
    gets over 95 % right of episodes never shown, a perceptron about half."""

    def noise(seed: int) -> Trajectory:
        draw = np.random.default_rng(seed)
        seen = draw.normal(size=(41, 4)).astype(np.float32)
        right = np.concatenate([draw.integers(2, size=2), (seen[:38, 0] > 0).astype(np.int64)])
        return Trajectory("CartPole-v1", seed, seen, right, np.ones(40, np.float32), False)

    def right_after_training(**settings: Any) -> float:
        policy = build(ActionConfig(environment="CartPole-v1", activation="relu", **settings))
        shown = policy.collate([sample_of(noise(seed)) for seed in range(64)])
        optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
        for _ in range(120):
            (-policy(shown).log_probs.mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            held_out = policy(policy.collate([sample_of(noise(1000 + seed)) for seed in range(32)])).log_probs[:, 0, 2:]
        return float((held_out.exp() > 0.5).float().mean())

    assert right_after_training(network="transformer", hidden=(32,), heads=2, history=4) > 0.95
    assert right_after_training(network="mlp", hidden=(32,)) < 0.6


def test_a_saved_transformer_acts_alike_and_shapes_are_checked(tmp_path: Path) -> None:
    policy = remembering("Pendulum-v1")
    policy.save(tmp_path)
    again = build(policy.config.model_copy(update={"base": str(tmp_path)}))
    (first,), (second,) = (one.generate([Task("Pendulum-v1", 1).prompt()], seed=4) for one in (policy, again))
    np.testing.assert_array_equal(first.output.actions, second.output.actions)
    for wrong in ({"hidden": (16, 32)}, {"hidden": (18,)}):
        with pytest.raises(ValueError, match="one width that heads=4 divides"):
            ActionConfig(network="transformer", **wrong)
