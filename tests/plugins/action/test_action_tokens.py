"""Action tokens: numbers as words, episodes as rows of them, and a language model that acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from polyalign.errors import ConfigError
from polyalign.records.samples import Sample
from polyalign.training.config import OnlineConfig
from polyalign.training.rollouts import Judges
from polyalign_action.action_bins import ActionBins, observation_bins, quantile_range
from polyalign_action.action_tokens import ActionTokensPolicy, build
from polyalign_action.action_tokens_config import ActionTokensConfig
from polyalign_action.environments import Spaces
from polyalign_action.episodes import candidate_of
from polyalign_action.fixture import InMemory
from polyalign_action.reach_demonstrations import demonstrated
from polyalign_action.rewards import ReturnReward
from polyalign_action.tasks import Task

BOX = Spaces(observation=3, actions=2, discrete=False, low=(-1.0, 0.0), high=(1.0, 10.0))


def policy_of(body: str, **settings: Any) -> ActionTokensPolicy:
    options: dict[str, Any] = {"bins": 16, "observation_bins": 32, "max_length": 160, "max_response": 96, "base": "fresh:1x16"}
    return build(ActionTokensConfig(environment=f"Reach/{body}", **options | settings))


def sample_of(body: str, seed: int) -> Sample:
    media = InMemory()
    task, episode = demonstrated(body, seed)
    return Sample("s", task.prompt(), candidate_of(episode, media.add).parts, "s", media)


def test_actions_come_back_within_half_a_bin_and_middles_exactly() -> None:
    """Derived: a bin is (high - low) / count wide, so its middle is at most half of that away; outside, the last bin's middle."""
    bins, draw = ActionBins(BOX, 16), np.random.default_rng(0)
    actions = draw.uniform([-1, 0], [1, 10], (200, 2)).astype(np.float32)
    middles = bins.middle(bins.of(actions))
    assert (np.abs(middles - actions) <= np.array([2, 10]) / 32 + 1e-5).all()
    np.testing.assert_array_equal(bins.of(middles), bins.of(actions))
    np.testing.assert_array_equal(bins.of(np.array([[-9.0, 99.0]])), [[0, 15]])


def test_quantiles_leave_out_the_tails() -> None:
    low, high = quantile_range(np.arange(101.0)[:, None], tail=0.05)
    assert (low, high) == ([5.0], [95.0])
    assert ActionBins(BOX, 4, (0.0, 0.0), (1.0, 1.0)).of(np.array([[0.99, 0.3]])).tolist() == [[3, 1]]


def test_observation_bins_keep_order_and_are_finer_near_zero() -> None:
    values = np.array([[-300.0, -1.0, -0.01, 0.0, 0.01, 1.0, 300.0]])
    found = observation_bins(values, 1024)[0]
    assert (np.diff(found) >= 0).all() and found[0] == 0 and found[-1] == 1023 and found[3] == 512
    assert found[4] - found[3] > found[-1] - observation_bins(np.array([[299.99]]), 1024)[0, 0]


@pytest.mark.parametrize("body", ["Cursor", "Keys"])
def test_an_episode_is_a_row_of_observations_and_actions_of_which_the_actions_are_scored(body: str) -> None:
    policy, sample = policy_of(body), sample_of(body, 3)
    _, episode = demonstrated(body, 3)
    per_step = 10 + policy.encoder.bins.per_step
    ids = np.asarray(policy.encoder.ids_of(episode)).reshape(len(episode), per_step)
    taken = policy.encoder.action_ids[policy.encoder.bins.of(episode.actions)]
    np.testing.assert_array_equal(ids[:, 10:], taken)
    batch = policy.collate([sample])
    scored = taken.reshape(-1)[: 96 // per_step * policy.encoder.bins.per_step]
    assert batch.tensors["targets"][0][batch.mask[0, 0]].tolist()[: len(scored)] == scored.tolist()


@pytest.mark.parametrize("body", ["Cursor", "Keys"])
def test_rollouts_score_again_and_replay_in_the_environment(body: str) -> None:
    policy = policy_of(body)
    prompts = [demonstrated(body, seed)[0].prompt() for seed in (1, 2)]
    rollouts = policy.generate(prompts, samples_per_prompt=2, seed=3)
    scores = policy(policy.collator.of_rollouts(rollouts))
    for row, rollout in enumerate(rollouts):
        mine = scores.log_probs[row, 0][scores.mask[row, 0]]
        torch.testing.assert_close(mine, rollout.old_log_probs, rtol=0, atol=1e-5)
        assert len(mine) == len(rollout.output) * policy.encoder.bins.per_step
        assert rollout.decisions[0].ids.tolist() == list(policy.encoder.ids_of(rollout.output))  # type: ignore[union-attr]


def test_reading_on_with_a_cache_gives_the_probabilities_that_scoring_gives() -> None:
    """Greedy actions are the likeliest action tokens of a plain forward pass over the finished row, prompts of unequal length."""
    policy = policy_of("Keys")
    tasks = [Task("Reach/Keys", 1, instruction=words) for words in ("go", "go to the red disc at once")]
    for rollout in policy.generate([task.prompt() for task in tasks], temperature=0.0):
        batch = policy.collator.of_rollouts([rollout])
        ids, prompt = batch.tensors["input_ids"], int(batch.tensors["prompt"][0])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0]
        places = torch.arange(prompt + 10, ids.shape[1], 11)
        likeliest = logits[places - 1][:, torch.from_numpy(policy.encoder.action_ids)].argmax(-1)
        assert likeliest.tolist() == rollout.output.actions.tolist()


def test_an_episode_depends_on_its_own_prompt_draw_and_seed_alone() -> None:
    policy = policy_of("Keys")
    prompts = [demonstrated("Keys", seed)[0].prompt() for seed in (1, 2)]
    together = policy.generate(prompts, samples_per_prompt=2, seed=7)
    (_, alone) = policy.generate(prompts[1:], samples_per_prompt=2, seed=7)
    np.testing.assert_array_equal(together[3].output.actions, alone.output.actions)
    assert not np.array_equal(together[2].output.actions, together[3].output.actions)


def test_the_seed_of_a_task_is_not_read() -> None:
    policy = policy_of("Keys")
    one, other = (policy.encoder.prompt(Task("Reach/Keys", seed, instruction="go").prompt(), None).ids for seed in (1, 2))
    assert one == other


def test_a_saved_model_is_a_base_whose_words_are_known(tmp_path: Path) -> None:
    policy = policy_of("Keys")
    policy.save(tmp_path)
    again = policy_of("Keys", base=str(tmp_path))
    assert len(again.tokenizer) == len(policy.tokenizer)
    batch = policy.collate([sample_of("Keys", 3)])
    torch.testing.assert_close(again(batch).log_probs, policy(batch).log_probs)


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="fresh:2x64"):
        policy_of("Keys", base="fresh:huge")
    with pytest.raises(ConfigError, match="the policy was built for 'Reach/Keys'"):
        policy_of("Keys").generate([Task("CartPole-v1", 1).prompt()])
    with pytest.raises(ConfigError, match="unknown decoding setting 'greedy'"):
        policy_of("Keys").generate([Task("Reach/Keys", 1).prompt()], greedy=True)
    with pytest.raises(ValueError, match="give each number of an action a range"):
        ActionTokensConfig(base="fresh:1x16", environment="Reach/Cursor", low=(1.0,), high=(0.0,))


@pytest.mark.slow
def test_it_learns_to_balance_a_pole_from_a_script() -> None:
    """Behaviour cloning of a scripted expert on CartPole: at least 60 more steps than untrained weights, over 16 starts."""
    import polyalign_action.fixture as scripts
    from polyalign.objectives.base import FeedbackTensors
    from polyalign.objectives.supervised import SFT
    from polyalign.records.samples import Example

    policy = build(
        ActionTokensConfig(base="fresh:1x32", environment="CartPole-v1", observation_bins=64, max_length=560, max_response=500)
    )
    assert gymnasium.spec("CartPole-v1").max_episode_steps == 500
    prompts = [Task("CartPole-v1", seed).prompt() for seed in range(1000, 1016)]

    def mean_steps() -> float:
        return float(np.mean([len(rollout.output) for rollout in policy.generate(prompts, temperature=0.0)]))

    media, before, samples = InMemory(), mean_steps(), []
    for seed in range(32):
        episode = scripts.scripted("CartPole-v1", lambda seen: (seen[:, 2] + 0.5 * seen[:, 3] > 0).long(), seed, 40)
        samples.append(
            Sample(f"s{seed}", Task("CartPole-v1", seed).prompt(), candidate_of(episode, media.add).parts, f"s{seed}", media)
        )
    batch, feedback = policy.collate(samples), FeedbackTensors.of([Example(s.id, (s,)) for s in samples])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for _ in range(60):
        term = SFT()(policy(batch), {}, feedback)["nll"]
        (term.sum / term.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert mean_steps() > before + 60


def test_the_return_pays_the_last_token_of_an_action() -> None:
    """A cursor is told two numbers, a token each: the first earns nothing, the second what the step was paid."""
    rollouts = policy_of("Cursor").generate([Task("Reach/Cursor", 3).prompt()], samples_per_prompt=2, seed=1)
    online = OnlineConfig.model_validate({"rewards": [{"name": "return"}], "samples_per_prompt": 2})
    (group,) = Judges(online, {"return": ReturnReward()}, {}).groups(["a"], rollouts, 2)
    assert group.earned is not None
    for earned, rollout in zip(group.earned, rollouts, strict=True):
        assert earned[::2] == (0.0,) * len(rollout.output)
        np.testing.assert_allclose(earned[1::2], rollout.output.rewards, atol=1e-5)
