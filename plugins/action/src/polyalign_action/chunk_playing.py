"""Rollouts of a diffusion policy: chunks of actions are drawn, the first of them done, and the next chunk is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import gymnasium
import torch
from torch import Tensor

from polyalign.policies.base import Noised, Rollout, Rollouts, Transition, evaluating
from polyalign.policies.samplers import Step, coefficients, grid_of, log_density, steps_of, window_of
from polyalign.policies.transitions import step_mean
from polyalign.randomness import keyed_generator, keyed_seed
from polyalign.records.schema import Message
from polyalign_action.diffusion_config import DiffusionDecoding
from polyalign_action.environments import play, time_limit
from polyalign_action.playing import Playing, side_by_side, start_of

if TYPE_CHECKING:
    from polyalign_action.diffusion_policy import DiffusionPolicy


@torch.no_grad()
def played(
    policy: DiffusionPolicy,
    prompts: Sequence[tuple[Message, ...]],
    samples_per_prompt: int,
    seed: int,
    decoding: DiffusionDecoding,
) -> Rollouts:
    """Return one episode per rollout, prompt-major; ``output`` is its `Trajectory`.

    With ``decoding.sampler`` its stochastic steps, of every chunk, are the decisions; a sampler that has none gives `Noised`
    decisions: all chunks of the episode as they were drawn, under the policy's own draws of (t, noise).
    """
    grid = grid_of(policy.schedule, decoding.used.steps)
    steps = steps_of(policy.schedule.prediction, grid, decoding.used, window_of(decoding.used, grid, seed))

    def episodes(jobs: Sequence[Playing], pool: Sequence[gymnasium.Env]) -> list[Rollout]:
        return _episodes(policy, jobs, pool, seed, decoding, steps)

    with evaluating(policy):
        return side_by_side(policy, prompts, samples_per_prompt, decoding.used.batch_size, episodes)


def _episodes(
    policy: DiffusionPolicy,
    jobs: Sequence[Playing],
    environments: Sequence[gymnasium.Env],
    seed: int,
    decoding: DiffusionDecoding,
    steps: Sequence[Step],
) -> list[Rollout]:
    limits = [time_limit(environment, policy.config.max_steps) for environment in environments]
    starts = [start_of(task, number, seed) for _, number, task in jobs]
    writer = ChunkWriter(policy, jobs, seed, decoding, steps)
    episodes = play(environments, starts, limits, policy.spaces, writer.act)
    used = {**decoding.model_dump(), "seed": seed}
    rollouts = [Rollout(prompt, episode, decoding=used) for (prompt, _, _), episode in zip(jobs, episodes)]
    if decoding.sampler is None:
        return rollouts
    if not any(step.std for step in steps):
        return _noised(policy, rollouts, jobs, writer, seed)
    return [
        replace(
            rollout,
            output=replace(rollout.output, paid=_paid(len(rollout.output), policy.config.execute, len(mine))),
            decisions=tuple(mine),
            old_log_probs=torch.stack(densities),
        )
        for rollout, mine, densities in zip(rollouts, writer.transitions, writer.densities)
    ]


def _paid(length: int, execute: int, decisions: int) -> tuple[int, ...]:
    """Return the steps that fall due at each decision: those of a chunk at its last one."""
    chunks = [min(execute, length - start) for start in range(0, length, execute)]
    before = (0,) * (decisions // len(chunks) - 1)
    return tuple(steps for count in chunks for steps in (*before, count))


def _noised(
    policy: DiffusionPolicy, rollouts: Sequence[Rollout], jobs: Sequence[Playing], writer: ChunkWriter, seed: int
) -> list[Rollout]:
    """Noise the chunks by the policy's own draws, and keep what it predicts there before training changes it."""
    collator = policy.collator
    found = []
    for (_, number, task), rollout, chunks in zip(jobs, rollouts, writer.drawn):
        key, clean = f"{keyed_seed(seed, 'act', task.text, number):016x}", torch.stack(chunks)
        levels = [collator.level(key, draw) for draw in collator.draws(0)]
        decisions = tuple(Noised(float(level), key, clean) for level in levels)
        found.append(replace(rollout, output=replace(rollout.output, paid=()), decisions=decisions))
    batch = collator.of_rollouts(found).to(policy.device)
    prediction, _ = policy.predict(batch)  # [P, D, H, A]
    scores = policy(batch).log_probs[:, :, 0].cpu()
    split = prediction.cpu().split([len(chunks) for chunks in writer.drawn])
    return [
        replace(
            rollout,
            decisions=tuple(replace(decision, prediction=mine[:, d]) for d, decision in enumerate(rollout.decisions)),
            old_log_probs=old,
        )
        for rollout, mine, old in zip(found, split, scores)
    ]


class ChunkWriter:
    """Acts in episodes side by side. ``drawn``: the chunks of each ``[H, A]``; ``transitions`` and ``densities``: the stochastic
    steps that made them, and how likely each was."""

    def __init__(
        self, policy: DiffusionPolicy, jobs: Sequence[Playing], seed: int, decoding: DiffusionDecoding, steps: Sequence[Step]
    ) -> None:
        self.policy, self.jobs, self.seed, self.sampler, self.steps = policy, jobs, seed, decoding.used, steps
        self.asked = torch.stack([policy.collator.reader.asked(task) for _, _, task in jobs])
        self.states: list[Tensor] = [torch.empty(0)] * len(jobs)  # [W, F] each
        self.drawn: list[list[Tensor]] = [[] for _ in jobs]
        self.transitions: list[list[Transition]] = [[] for _ in jobs]
        self.densities: list[list[Tensor]] = [[] for _ in jobs]

    def act(self, observations: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        window, execute = self.policy.config.observations, self.policy.config.execute
        for number, seen in zip(numbers, torch.cat([observations, self.asked[list(numbers)]], -1)):
            before = self.states[number] if step else seen.expand(window, -1)
            self.states[number] = torch.cat([before[1:], seen[None]])
        if step % execute == 0:
            self._draw(numbers, step)
        actions = torch.stack([self.drawn[number][-1][step % execute] for number in numbers])
        return self.policy.collator.unscaled(actions)

    def _draw(self, numbers: Sequence[int], step: int) -> None:
        """Draw the chunk that begins with this step for each of these episodes. Its noise is keyed by seed, task, number of the
        rollout and step, so that it does not depend on what else is drawn."""
        policy, device = self.policy, self.policy.device
        shape = (policy.config.horizon, policy.spaces.actions)
        keys = [(self.seed, "act", self.jobs[number][2].text, self.jobs[number][1], step) for number in numbers]
        start = [(*key[:3], "start", step) if self.sampler.same_start else key for key in keys]
        x = torch.stack([torch.randn(shape, generator=keyed_generator(*key)) for key in start]).to(device)
        seen = {"seen": torch.stack([self.states[number].flatten() for number in numbers]).to(device)}
        table = coefficients(self.steps).to(device)
        for at, sampled in enumerate(self.steps):
            row = table[at].expand(len(x), 4)
            x_next = mean = step_mean(x, policy.denoise(x, row[:, 3], seen), row)
            if sampled.std:
                noise = [torch.randn(shape, generator=keyed_generator(*key, "step", at)) for key in keys]
                x_next = mean + sampled.std * torch.stack(noise).to(device)
                self._keep(numbers, sampled, x, x_next, log_density(x_next, mean, row[:, 2], policy.settings.reduction))
            x = x_next
        for number, chunk in zip(numbers, x.cpu()):
            self.drawn[number].append(chunk)

    def _keep(self, numbers: Sequence[int], step: Step, x: Tensor, x_next: Tensor, densities: Tensor) -> None:
        for number, before, after, density in zip(numbers, x.cpu(), x_next.cpu(), densities.cpu()):
            made = Transition(before, after, step.timestep, self.sampler.kind, 1.0, step.state, step.prediction, step.std)
            self.transitions[number].append(made)
            self.densities[number].append(density)
