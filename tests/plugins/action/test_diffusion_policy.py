"""The diffusion policy: what it denoises is what it scores, chunk by chunk, whatever else is in the batch."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyalign.errors import ConfigError, TrainingError
from polyalign.evaluation.intervals import paired_gain
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.supervised import SFT
from polyalign.policies.base import Kind, Noised, Transition
from polyalign.policies.reference import FrozenCopy
from polyalign.records.samples import Edge, Example, Sample
from polyalign.training.batches import collate_examples
from polyalign.training.config import OnlineConfig
from polyalign.training.rollouts import Judges, collate_groups
from polyalign.training.window import WindowLoss
from polyalign_action.diffusion_config import DiffusionPolicyConfig
from polyalign_action.diffusion_policy import DiffusionPolicy, build
from polyalign_action.episodes import candidate_of
from polyalign_action.fixture import InMemory, scripted
from polyalign_action.rewards import ReturnReward
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory

STOCHASTIC = {"sampler": {"kind": "cps", "steps": 3}}
WHOLE = {"sampler": {"steps": 3}}


def tiny(**settings: Any) -> DiffusionPolicy:
    shape = {"observations": 2, "horizon": 4, "execute": 3, "channels": 16, "blocks": 1, "max_steps": 8}
    return build(DiffusionPolicyConfig(environment="Pendulum-v1", **shape | settings))


def prompts(count: int, first: int = 0) -> list[Any]:
    return [Task("Pendulum-v1", first + number).prompt() for number in range(count)]


def turning(strength: float, steps: int, seed: int = 0) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    return scripted("Pendulum-v1", lambda seen: strength + torch.randn(1, 1, generator=generator), seed, steps)


def sample_of(trajectory: Trajectory, name: str = "s", draw_key: str = "set") -> Sample:
    media = InMemory()
    task = Task("Pendulum-v1", trajectory.seed)
    return Sample(name, task.prompt(), candidate_of(trajectory, media.add).parts, draw_key, media)


@pytest.mark.parametrize("prediction", ["flow", "v_prediction", "epsilon"])
@pytest.mark.parametrize("stride", [None, 1])
def test_scores_are_the_mean_error_over_real_actions_chunk_by_chunk(prediction: str, stride: int | None) -> None:
    """By a loop over chunks: 7 steps in chunks of 4 from steps 0, 3 and 6 (or from each), so that what is past the end never
    counts; the prediction is the network's own on what the definition of the schedule makes of the chunk."""
    policy = tiny(prediction=prediction, stride=stride, draws=2, observation_scale=0.5)
    trajectory = turning(0.5, 7)
    sample = replace(sample_of(trajectory), epoch=3)
    batch = policy.collate([sample])
    scores = policy(batch)
    starts = range(0, 7, stride or 3)
    assert scores.log_probs.shape == (1, 2, len(starts)) and (scores.kind == int(Kind.DENOISING)).all()
    actions, seen = torch.from_numpy(trajectory.actions) / 2, torch.from_numpy(trajectory.observations)  # torque within +-2
    schedule = policy.schedule
    sizes = sum(min(4, 7 - start) for start in starts)
    for number, start in enumerate(starts):
        for draw in range(2):
            level = int(batch.tensors["level"][number, draw])
            noise = batch.tensors["noise"][number, draw]
            clean = torch.stack([actions[min(start + ahead, 6)] for ahead in range(4)])
            noised = schedule.signal[level] * clean + schedule.noise[level] * noise
            history = torch.cat([seen[max(start - 1, 0)], seen[start]])
            share = schedule.timesteps[level] / schedule.timesteps[-1]
            predicted = policy.network(noised[None], share[None], 0.5 * history[None])[0]
            target = {
                "flow": noise - clean,
                "epsilon": noise,
                "v_prediction": schedule.signal[level] * noise - schedule.noise[level] * clean,
            }[prediction]
            real = min(4, 7 - start)
            expected = -0.5 * (predicted - target)[:real].square().sum() / sizes
            torch.testing.assert_close(scores.log_probs[0, draw, number], expected)


def test_scores_are_equal_however_episodes_are_batched() -> None:
    policy = tiny(draws=2)
    samples = [sample_of(turning(0.3 * n, steps, n), f"s{n}", f"set{n}") for n, steps in enumerate((8, 2, 5, 1))]
    together = policy(policy.collate(samples))
    for row, sample in enumerate(samples):
        alone = policy(policy.collate([sample]))
        decisions = alone.log_probs.shape[-1]
        assert together.mask[row].sum() == 2 * decisions
        torch.testing.assert_close(together.log_probs[row, :, :decisions], alone.log_probs[0], rtol=0, atol=1e-6)
        assert not together.log_probs[row, :, decisions:].any()


def test_one_draw_key_gives_both_sides_of_a_pair_the_same_noise() -> None:
    policy = tiny()
    better, worse = sample_of(turning(0.5, 8), "a"), sample_of(turning(-0.5, 5), "b")
    tensors = policy.collate([better, worse]).tensors
    of_row = [tensors["place"][:, 0] == row for row in (0, 1)]
    for name in ("level", "noise"):
        first, second = (tensors[name][rows] for rows in of_row)
        torch.testing.assert_close(first[: len(second)], second, rtol=0, atol=0)
        assert not torch.equal(policy.collate([replace(better, epoch=1)]).tensors[name], first)
    assert len(set(tensors["level"][of_row[0]].flatten().tolist())) > 1  # every chunk is noised to a level of its own


def test_predictions_are_laid_out_so_that_their_mean_square_is_the_error() -> None:
    """Objectives that read predictions know no mask: episodes of unequal length must not dilute each other."""
    policy = tiny(draws=2)
    scores = policy(policy.collate([sample_of(turning(0.5, 8)), sample_of(turning(-0.5, 5))]), frozenset({"predictions"}))
    gap = (scores.extras["targets"] - scores.extras["predictions"]).square().flatten(2).mean(-1)  # [N, D]
    torch.testing.assert_close(-0.5 * gap, scores.reduced("sum"))


def test_a_reader_in_another_process_finds_what_was_prepared(tmp_path: Path) -> None:
    policy, samples = tiny(), [sample_of(turning(0.5, 8))]
    policy.prepare([*samples, Sample("prompt alone", prompts(1)[0], (), "p")], tmp_path)
    elsewhere = pickle.loads(pickle.dumps(policy.collator))
    torch.testing.assert_close(elsewhere(samples).tensors, policy.collator(samples).tensors, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["cps", "sde", "dance"])
def test_sampler_steps_score_again_as_they_were_drawn(kind: str) -> None:
    """8 steps in chunks of which 3 are done make 3 chunks; the last of 3 sampler steps is deterministic: 6 decisions."""
    policy = tiny()
    rollouts = policy.generate(prompts(2), samples_per_prompt=2, seed=3, sampler={"kind": kind, "steps": 3})
    scores = policy(policy.collator.of_rollouts(rollouts))
    assert scores.mask.shape == (4, 1, 6) and (scores.kind == int(Kind.TRANSITION)).all()
    for row, rollout in enumerate(rollouts):
        assert rollout.old_log_probs is not None
        assert all(isinstance(decision, Transition) for decision in rollout.decisions)
        torch.testing.assert_close(scores.log_probs[row, 0], rollout.old_log_probs, rtol=1e-5, atol=1e-5)


def test_whole_rollouts_score_again_as_they_were_drawn() -> None:
    policy = tiny(draws=2)
    rollouts = policy.generate(prompts(2), samples_per_prompt=2, seed=3, **WHOLE)
    scores = policy(policy.collator.of_rollouts(rollouts), frozenset({"predictions"}))
    assert scores.mask.shape == (4, 2, 1)
    torch.testing.assert_close(scores.extras["predictions"], scores.extras["old_predictions"], rtol=0, atol=1e-5)
    for row, rollout in enumerate(rollouts):
        assert rollout.old_log_probs is not None
        torch.testing.assert_close(scores.log_probs[row, :, 0], rollout.old_log_probs, rtol=0, atol=1e-5)
        levels = [int(decision.t) for decision in rollout.decisions if isinstance(decision, Noised)]
        scale = policy.schedule.clean_scale(torch.tensor(levels))
        torch.testing.assert_close(scores.extras["clean_scale"][row], scale)


def test_a_chunk_is_drawn_from_what_was_seen_and_its_first_actions_are_done() -> None:
    """The last step, which is deterministic, taken by hand on what the episode observed gives the actions that were done."""
    policy = tiny()
    (rollout,) = policy.generate(prompts(1, 5), seed=2, sampler={"kind": "cps", "steps": 4})
    seen, done = torch.from_numpy(rollout.output.observations), torch.from_numpy(rollout.output.actions)
    steps = [decision for decision in rollout.decisions if isinstance(decision, Transition)]
    per_chunk = len(steps) // 3
    for number, start in enumerate((0, 3, 6)):
        last = steps[(number + 1) * per_chunk - 1]
        x = last.x_next[None]
        level = torch.linspace(len(policy.schedule) - 1, 0, 5).round().long()[3]  # of four steps the last
        history = torch.cat([seen[max(start - 1, 0)], seen[start]])[None]
        velocity = policy.denoise(x, policy.schedule.timesteps[level][None], {"seen": history})
        chunk = x - policy.schedule.noise[level] * velocity
        torch.testing.assert_close(done[start : start + 3], 2 * chunk[0, : len(done[start : start + 3])], rtol=1e-4, atol=1e-5)


def test_an_episode_depends_on_its_own_prompt_draw_and_seed_alone() -> None:
    policy = tiny()
    together = policy.generate(prompts(3), samples_per_prompt=2, seed=7, batch_size=4)
    (_, alone) = policy.generate(prompts(1, 1), samples_per_prompt=2, seed=7)
    np.testing.assert_allclose(together[3].output.actions, alone.output.actions, atol=1e-5)  # rounding of a smaller batch
    np.testing.assert_array_equal(together[2].output.observations[0], together[3].output.observations[0])
    assert not np.array_equal(together[2].output.actions, together[3].output.actions)
    (other,) = policy.generate(prompts(1, 1), seed=8)
    assert not np.array_equal(other.output.actions, together[2].output.actions)
    same = policy.generate(prompts(1), samples_per_prompt=2, seed=7, sampler={"kind": "cps", "steps": 3, "same_start": True})
    first, second = (rollout.decisions[0] for rollout in same)
    assert isinstance(first, Transition) and isinstance(second, Transition)
    assert torch.equal(first.x_t, second.x_t) and not torch.equal(first.x_next, second.x_next)


@pytest.mark.parametrize("decoding", [STOCHASTIC, WHOLE])
def test_the_return_pays_the_decisions_of_a_chunk_for_its_steps(decoding: Any) -> None:
    """8 steps, 3 of each chunk done, 2 noisy sampler steps each: nothing at the first, then steps 0-2, 3-5, 6-7. Whole rollouts
    cannot tell decisions apart."""
    policy = tiny(draws=2)
    rollouts = policy.generate(prompts(2), samples_per_prompt=2, seed=1, **decoding)
    online = OnlineConfig.model_validate({"rewards": [{"name": "return"}], "samples_per_prompt": 2})
    groups = Judges(online, {"return": ReturnReward()}, {}).groups(["a", "b"], rollouts, 2)
    micro = collate_groups(groups, policy.collator, "best_worst", 8)
    assert micro.feedback.experience is not None
    earned = micro.feedback.experience.decision_rewards
    if decoding is WHOLE:
        assert earned is None
        return
    assert earned is not None
    for row, rollout in enumerate(rollouts):
        paid = rollout.output.rewards
        expected = [0, paid[:3].sum(), 0, paid[3:6].sum(), 0, paid[6:].sum()]
        torch.testing.assert_close(earned[row], torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-4)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match="real-valued actions"):
        build(DiffusionPolicyConfig(environment="CartPole-v1"))
    with pytest.raises(ValueError, match="execute=9"):
        DiffusionPolicyConfig(execute=9)
    with pytest.raises(ConfigError, match="no.*empty prompt|knows none"):
        tiny().generate(prompts(1), sampler={"guidance": 2.0})
    with pytest.raises(ConfigError, match="does not read steps"):
        tiny().generate(prompts(1), sampler={"steps": 3}, steps=3)
    policy = tiny()
    batch = policy.collator.of_rollouts(policy.generate(prompts(1), **STOCHASTIC))
    with pytest.raises(TrainingError, match="sampler.kind: ode"):
        policy(batch, frozenset({"predictions"}))


def test_a_saved_policy_acts_and_scores_alike(tmp_path: Path) -> None:
    policy = tiny()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    policy.save(tmp_path)
    again = tiny(base=str(tmp_path))
    assert again.fingerprint() == policy.fingerprint() != tiny().fingerprint()
    (first,), (second,) = (one.generate(prompts(1), seed=4) for one in (policy, again))
    np.testing.assert_array_equal(first.output.actions, second.output.actions)


def swing_up(seen: Tensor) -> Tensor:
    """Pump energy into the pendulum until it stands, then hold it there: the torque that a textbook gives."""
    cos, sin, speed = seen.unbind(-1)
    pump = 2 * (5 - speed.square() / 6 - 5 * cos) * speed.clamp(-1, 1)
    hold = -10 * torch.atan2(sin, cos) - 2.5 * speed
    return torch.where(cos > 0.85, hold, pump).clamp(-2, 2)[:, None]


def shaking(seed: int, steps: int, noise: float) -> Trajectory:
    """Return an episode of the expert, to whose torque normal noise of this deviation is added."""
    draw = torch.Generator().manual_seed(seed)
    return scripted("Pendulum-v1", lambda seen: swing_up(seen) + noise * torch.randn(1, 1, generator=draw), seed, steps)


def trained(policy: DiffusionPolicy, examples: list[Example], objective: Any, steps: int, batch: int, rate: float) -> float:
    """Train on so many examples at a time; return the mean margin of all of them afterwards, if they have edges."""
    reference = FrozenCopy(policy) if "reference" in objective.needs else None
    window = WindowLoss(policy, reference or (lambda *_: None), objective, "cpu")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        picked = np.random.default_rng(step).choice(len(examples), batch, replace=False)
        chosen = [at_epoch(examples[number], step) for number in picked]
        window.train([collate_examples(chosen, policy.collator)], lambda loss, last: loss.backward())
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (steps - step) / steps)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return margin(policy, examples)


def at_epoch(example: Example, epoch: int) -> Example:
    return replace(example, samples=tuple(replace(sample, epoch=epoch) for sample in example.samples))


@torch.no_grad()
def margin(policy: DiffusionPolicy, examples: list[Example], epoch: int = 10_000) -> float:
    """Return the mean difference of the scores of both sides, under draws that training never saw."""
    if not examples[0].edges:
        return math.nan
    micro = collate_examples([at_epoch(example, epoch) for example in examples], policy.collator)
    values, edges = policy(micro.batch).reduced("sum").mean(-1), micro.feedback.edges
    return float((values[edges.better] - values[edges.worse]).mean())


def prepared(policy: DiffusionPolicy, examples: list[Example]) -> list[Example]:
    policy.encode_missing([sample for example in examples for sample in example.samples])
    return examples


def test_imitation_of_an_expert_raises_the_return() -> None:
    """40 episodes of 120 steps by an expert whose hand shakes, 300 steps of SFT: on 16 starts never shown the gain in return is
    above 100 (95 %)."""
    policy = tiny(observations=1, horizon=4, execute=2, stride=2, channels=32, max_steps=120)
    episodes = [shaking(seed, 120, 1.0) for seed in range(40)]
    shown = [sample_of(episode, f"e{episode.seed}", f"e{episode.seed}") for episode in episodes]
    examples = prepared(policy, [Example(sample.id, (sample,)) for sample in shown])

    def returns() -> np.ndarray:
        rollouts = policy.generate(prompts(16, 1000), seed=1, steps=5)
        return np.array([rollout.output.discounted() for rollout in rollouts])

    before = returns()
    trained(policy, examples, SFT(), 300, 8, 3e-3)
    after = returns()
    gain = paired_gain(before[:, None], after[:, None])
    assert gain.low > 100, gain


def test_dpo_on_an_expert_against_a_perturbed_one_raises_the_margin_on_other_pairs() -> None:
    """16 pairs from one start each; the margin is measured on 8 others, with noise of its own."""
    policy = tiny(observations=2, horizon=4, execute=4, channels=32)

    def pair(seed: int) -> Example:
        sides = (shaking(seed, 40, 0.0), shaking(seed, 40, 1.5))
        samples = tuple(sample_of(side, f"{seed}-{n}", f"pair-{seed}") for n, side in enumerate(sides))
        return Example(f"pair-{seed}", samples, edges=(Edge(0, 1),))

    shown, others = (prepared(policy, [pair(seed) for seed in seeds]) for seeds in (range(16), range(100, 108)))
    before = margin(policy, others)
    trained(policy, shown, DPO(DPOConfig(beta=500.0)), 60, 8, 1e-3)
    assert margin(policy, others) > before + 1e-3
