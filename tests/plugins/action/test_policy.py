"""The action policy: what it plays is what it scores, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from polyalign.errors import ConfigError, MediaError, RecordError
from polyalign.plugins.registry import registry
from polyalign.policies.base import Actions, Kind
from polyalign.policies.continuous import CategoricalHead, GaussianHead
from polyalign.policies.fixture import fixtures_of
from polyalign.records.samples import Sample
from polyalign_action.config import ActionConfig
from polyalign_action.environments import Spaces
from polyalign_action.episodes import candidate_of
from polyalign_action.fixture import InMemory
from polyalign_action.policy import ActionPolicy, build
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory

KINDS = ("CartPole-v1", "Pendulum-v1")
each_kind = pytest.mark.parametrize("name", KINDS)


def lively(name: str, **settings: Any) -> ActionPolicy:
    """Return a policy whose actions depend on what it sees: the starting one hardly does."""
    policy = build(ActionConfig(environment=name, hidden=(16,), max_steps=40, **settings))
    with torch.no_grad():
        policy.actor[-1].weight.mul_(100)  # type: ignore[index, union-attr, operator]
    return policy


def prompts(name: str, count: int, first: int = 0) -> list[Any]:
    return [Task(name, first + number).prompt() for number in range(count)]


def sample_of(trajectory: Trajectory, task: Task | None = None) -> Sample:
    media = InMemory()
    task = task or Task(trajectory.environment, trajectory.seed)
    return Sample("s", task.prompt(), candidate_of(trajectory, media.add).parts, "s", media)


@each_kind
def test_rollouts_score_again_as_they_were_played(name: str) -> None:
    """By the rollout's own batch and by way of the codec, padding included: 1e-6 each."""
    policy = lively(name)
    rollouts = policy.generate(prompts(name, 3), samples_per_prompt=2, seed=5)
    again = policy(policy.collator.of_rollouts(rollouts))
    stored = policy(policy.collate([sample_of(rollout.output) for rollout in rollouts]))
    for row, rollout in enumerate(rollouts):
        steps = len(rollout.output)
        assert rollout.old_log_probs is not None and len(rollout.old_log_probs) == steps
        for scores in (again, stored):
            assert scores.mask[row, 0].sum() == steps and (scores.kind == int(Kind.ACTION)).all()
            torch.testing.assert_close(scores.log_probs[row, 0, :steps], rollout.old_log_probs, rtol=0, atol=1e-6)
            assert not scores.log_probs[row, 0, steps:].any()
        (decision,) = rollout.decisions
        assert isinstance(decision, Actions) and decision.values.shape[0] == steps


@each_kind
def test_log_probabilities_and_entropies_are_those_of_torch_distributions(name: str) -> None:
    policy = lively(name)
    (rollout,) = policy.generate(prompts(name, 1), seed=1)
    states = torch.from_numpy(rollout.output.observations[:-1])
    outputs, actions = policy.actor(states), torch.from_numpy(rollout.output.actions)
    if isinstance(policy.head, GaussianHead):
        oracle: Any = torch.distributions.Independent(torch.distributions.Normal(outputs, policy.head.log_std.exp()), 1)
    else:
        oracle = torch.distributions.Categorical(logits=outputs)
    scores = policy(policy.collator.of_rollouts([rollout]), frozenset({"entropy", "hidden", "states"}))
    torch.testing.assert_close(scores.log_probs[0, 0], oracle.log_prob(actions))
    torch.testing.assert_close(scores.extras["entropy"][0], oracle.entropy())
    taken = torch.eye(2)[actions] if name == "CartPole-v1" else actions / 2  # Pendulum's torque lies within +-2
    features = torch.cat([policy.actor[:-1](states), taken], -1)  # type: ignore[index]
    torch.testing.assert_close(scores.extras["states"][0], features)
    torch.testing.assert_close(scores.extras["hidden"][0], features.mean(0))
    assert policy.feature_sizes == {"hidden": features.shape[1], "states": features.shape[1]}


@each_kind
def test_the_environment_paid_for_exactly_these_actions(name: str) -> None:
    """An independent replay in gymnasium, clipped as its space says, sees and pays the same."""
    policy = lively(name)
    (rollout,) = policy.generate([Task(name, 11).prompt()], seed=2)
    played = rollout.output
    environment = gymnasium.make(name)
    seen = [environment.reset(seed=11)[0]]
    paid = []
    for action in played.actions:
        given = int(action) if name == "CartPole-v1" else np.clip(action, -2, 2)
        observation, reward, *_ = environment.step(given)
        seen.append(observation)
        paid.append(reward)
    np.testing.assert_allclose(played.observations, np.stack(seen), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(played.rewards, paid, rtol=1e-5)


@each_kind
def test_an_episode_depends_on_its_own_prompt_draw_and_seed_alone(name: str) -> None:
    policy = lively(name)
    together = policy.generate(prompts(name, 3), samples_per_prompt=2, seed=7, batch_size=4)
    (_, alone) = policy.generate(prompts(name, 1, first=1), samples_per_prompt=2, seed=7)
    np.testing.assert_allclose(together[3].output.actions, alone.output.actions, atol=1e-5)  # rounding of a smaller batch
    starts = [rollout.output.observations[0] for rollout in together]
    np.testing.assert_array_equal(starts[2], starts[3])  # one prompt, one start
    assert not np.array_equal(together[2].output.actions, together[3].output.actions)
    (other,) = policy.generate(prompts(name, 1, first=1), seed=8)
    assert not np.array_equal(other.output.actions, together[2].output.actions)
    unseeded = policy.generate([Task(name).prompt()], samples_per_prompt=2, seed=7)
    assert not np.array_equal(unseeded[0].output.observations[0], unseeded[1].output.observations[0])


def test_an_episode_that_ends_early_is_told_from_one_that_is_cut() -> None:
    policy = lively("CartPole-v1")
    ended, cut = policy.generate(prompts("CartPole-v1", 1), seed=0), lively("Pendulum-v1").generate(prompts("Pendulum-v1", 1))
    assert ended[0].output.terminated and len(ended[0].output) < 40
    assert not cut[0].output.terminated and len(cut[0].output) == 40


def test_drawn_actions_follow_their_distribution() -> None:
    """20,000 draws: frequencies within 4 standard errors of the probabilities, moments of the normal within 4 of theirs."""
    draw, count = torch.Generator().manual_seed(0), 20_000
    head = CategoricalHead(3)
    probabilities = torch.tensor([0.2, 0.5, 0.3])
    drawn = head.draw(probabilities.log().expand(count, 3), head.noise(count, draw))
    frequencies = torch.bincount(drawn, minlength=3) / count
    assert ((frequencies - probabilities).abs() < 4 * (probabilities * (1 - probabilities) / count).sqrt()).all()
    normal = GaussianHead([0.5])
    values = normal.draw(torch.full((count, 1), 2.0), normal.noise(count, draw))
    assert abs(float(values.mean()) - 2.0) < 4 * 0.5 / count**0.5
    assert abs(float(values.std()) - 0.5) < 4 * 0.5 / (2 * count) ** 0.5


@each_kind
def test_greedy_episodes_take_the_likeliest_action(name: str) -> None:
    policy = lively(name)
    first, second = (policy.generate(prompts(name, 1), seed=seed, greedy=True)[0].output for seed in (0, 1))
    np.testing.assert_array_equal(first.actions, second.actions)


def test_a_goal_changes_what_is_done_and_must_be_given() -> None:
    policy = lively("CartPole-v1", goal=1)
    ahead, back = (policy.generate([Task("CartPole-v1", 3, (goal,)).prompt()], seed=0)[0].output for goal in (5.0, -5.0))
    assert not np.array_equal(ahead.actions, back.actions)
    with pytest.raises(RecordError, match="gives 0 goal numbers; the policy takes 1"):
        policy.generate(prompts("CartPole-v1", 1))


@each_kind
def test_a_saved_policy_is_restored_with_or_without_its_critic(name: str, tmp_path: Path) -> None:
    policy = lively(name, value_head=True)
    policy.save(tmp_path)
    config = policy.config.model_copy(update={"base": str(tmp_path)})
    restored = build(config, seed=99)
    assert restored.fingerprint() == policy.fingerprint()
    (rollout,) = policy.generate(prompts(name, 1))
    actor_only = build(config.model_copy(update={"value_head": False}))
    batch = policy.collator.of_rollouts([rollout])
    torch.testing.assert_close(actor_only(batch).log_probs, policy(batch).log_probs)
    assert policy(batch).extras["values"].shape == (1, len(rollout.output)) and "values" not in actor_only(batch).extras
    with pytest.raises(ConfigError, match="does not fit these settings"):
        build(config.model_copy(update={"hidden": (8,)}))
    with pytest.raises(ConfigError, match="holds no model.safetensors"):
        build(config.model_copy(update={"base": str(tmp_path / "nowhere")}))


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    policy = lively("CartPole-v1")
    with pytest.raises(ConfigError, match="Acrobot-v1.*policy was built for 'CartPole-v1'"):
        policy.generate(prompts("Acrobot-v1", 1))
    with pytest.raises(ConfigError, match="gymnasium cannot make 'CartPole-v99'"):
        build(ActionConfig(environment="CartPole-v99"))
    with pytest.raises(ConfigError, match="unknown decoding setting 'temperature'"):
        policy.generate(prompts("CartPole-v1", 1), temperature=0.5)
    pendulum = lively("Pendulum-v1").generate(prompts("Pendulum-v1", 1))[0].output
    with pytest.raises(MediaError, match="'s' .*Pendulum-v1.*the policy has 4"):
        policy.collate([sample_of(pendulum)])
    with pytest.raises(ConfigError, match="FlattenObservation"):
        Spaces.of(gymnasium.make("Blackjack-v1")) if "Blackjack-v1" in gymnasium.registry else pytest.skip("no Blackjack")


def test_actions_are_counted_as_the_environment_counts_them() -> None:
    """Discrete(2, start=5): the trajectory holds 5 and 6, the head 0 and 1."""
    spaces = Spaces(observation=1, actions=2, discrete=True, first=5)
    policy = ActionPolicy(ActionConfig(hidden=(4,)), spaces)
    trajectory = Trajectory("E", 0, np.zeros((3, 1)), np.array([5, 6]), np.zeros(2), True)
    batch = policy.collate([sample_of(trajectory, Task("E", 0))])
    assert batch.tensors["actions"].tolist() == [[0, 1]]
    with pytest.raises(MediaError, match="from 5 to 7"):
        policy.collate([sample_of(Trajectory("E", 0, np.zeros((3, 1)), np.array([5, 7]), np.zeros(2), True), Task("E", 0))])


def test_the_fixture_covers_both_heads() -> None:
    heads = {type(fixture.build().head) for fixture in fixtures_of(registry().get("policies", "action"))}  # type: ignore[attr-defined, arg-type]
    assert heads == {CategoricalHead, GaussianHead}
