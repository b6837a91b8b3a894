"""Drawing responses from a denoising model step by step: rollouts that can be scored again, and samples with a gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polyalign.policies.base import Batch, Decision, Noised, Rollout, Rollouts, Transition, in_batches
from polyalign.policies.config import SamplerConfig
from polyalign.policies.samplers import Step, coefficients, log_density, steps_of, window_of
from polyalign.policies.transitions import guided, step_mean
from polyalign.randomness import keyed_generator, keyed_seed
from polyalign.records.samples import Sample
from polyalign.records.schema import Message

if TYPE_CHECKING:
    from polyalign.policies.denoising import DenoisingPolicy


@dataclass(frozen=True)
class _Job:
    """One response to draw: its prompt, the key of the noise it starts from and the key of the noise of its steps."""

    sample: Sample
    start: tuple[str | int, ...]
    key: tuple[str | int, ...]


@torch.no_grad()
def rollouts_of(
    policy: DenoisingPolicy, prompts: Sequence[tuple[Message, ...]], samples_per_prompt: int, seed: int, config: SamplerConfig
) -> Rollouts:
    """Return ``len(prompts) * samples_per_prompt`` rollouts, prompt-major, with their decisions and old log-probabilities.

    Decisions are the stochastic steps. A sampler without any (``ode``) gives `Noised` decisions instead: the response's
    latents under the policy's own draws of (t, noise), with today's predictions, for solver-free objectives. Noise is keyed
    by (seed, prompt, number of the response), so it does not depend on what else is drawn.
    """
    jobs = _jobs(policy, prompts, samples_per_prompt, seed, config)
    grid = policy.sampling_grid(config.steps)
    steps = steps_of(policy.schedule.prediction, grid, config, window_of(config, grid, seed))
    policy.encode_prompts([job.sample for job in jobs])
    return in_batches(policy, jobs, config.batch_size, lambda part: _drawn(policy, part, steps, config, seed))


def _jobs(
    policy: DenoisingPolicy, prompts: Sequence[tuple[Message, ...]], samples_per_prompt: int, seed: int, config: SamplerConfig
) -> list[_Job]:
    jobs: list[_Job] = []
    seen = Counter[str]()
    for prompt in (prompt for prompt in prompts for _ in range(samples_per_prompt)):
        name = policy.noise_key(prompt)
        key = (seed, "generate", name, seen[name])
        start = (*key[:3], "start") if config.same_start else key
        jobs.append(_Job(Sample(f"rollout-{len(jobs)}", prompt, (), f"{keyed_seed(*key):016x}"), start, key))
        seen[name] += 1
    return jobs


def _drawn(
    policy: DenoisingPolicy, jobs: Sequence[_Job], steps: Sequence[Step], config: SamplerConfig, seed: int
) -> list[Rollout]:
    device = policy.device
    conditions, blank, guidance = _conditions(policy, [job.sample for job in jobs], config)
    shapes = [policy.latent_shape(job.sample.prompt) for job in jobs]
    x = torch.stack([torch.randn(shape, generator=keyed_generator(*job.start)) for job, shape in zip(jobs, shapes)]).to(device)
    decisions: list[list[Decision]] = [[] for _ in jobs]
    densities: list[Tensor] = []
    table = coefficients(steps).to(device)
    for number, step in enumerate(steps):
        row = table[number].expand(len(jobs), 4)
        prediction = guided(policy, x, row[:, 3], conditions, blank, guidance)
        x_next = mean = step_mean(x, prediction, row)
        if step.std:
            noise = [torch.randn(shape, generator=keyed_generator(*job.key, "step", number)) for job, shape in zip(jobs, shapes)]
            x_next = mean + step.std * torch.stack(noise).to(device)
            densities.append(log_density(x_next, mean, row[:, 2], policy.settings.reduction).cpu())
            for mine, before, after in zip(decisions, x.cpu(), x_next.cpu(), strict=True):
                mine.append(
                    Transition(before, after, step.timestep, config.kind, config.guidance, step.state, step.prediction, step.std)
                )
        x = x_next
    outputs = policy.outputs_of(policy.decode_latents(x))
    used = {"sampler": config.model_dump(), "seed": seed}
    rollouts = [Rollout(job.sample.prompt, output, decoding=used) for job, output in zip(jobs, outputs, strict=True)]
    if not densities:
        return _noised(policy, rollouts, jobs, x.cpu())
    old = torch.stack(densities, 1)
    return [
        replace(rollout, decisions=tuple(mine), old_log_probs=values)
        for rollout, mine, values in zip(rollouts, decisions, old, strict=True)
    ]


def _noised(policy: DenoisingPolicy, rollouts: list[Rollout], jobs: Sequence[_Job], latents: Tensor) -> list[Rollout]:
    """Noise the responses by the policy's own draws, and keep what it predicts there before training changes it."""
    collator = policy.collator
    levels = [[collator.level(job.sample.draw_key, draw) for draw in collator.draws(0)] for job in jobs]
    noised = [
        replace(rollout, decisions=tuple(Noised(float(level), job.sample.draw_key, clean) for level in mine))
        for rollout, job, mine, clean in zip(rollouts, jobs, levels, latents, strict=True)
    ]
    batch = collator.of_rollouts(noised).to(policy.device)
    scores = policy(batch, frozenset({"predictions"}))
    predictions = scores.extras["predictions"].cpu()  # [N, D, ...]
    return [
        replace(
            rollout,
            decisions=tuple(
                replace(decision, prediction=value)
                for decision, value in zip(rollout.decisions, values, strict=True)
                if isinstance(decision, Noised)
            ),
            old_log_probs=old,
        )
        for rollout, values, old in zip(noised, predictions, scores.log_probs[:, :, 0].cpu(), strict=True)
    ]


def _conditions(policy: DenoisingPolicy, samples: Sequence[Sample], config: SamplerConfig) -> tuple[Any, Any, Tensor]:
    collator, device = policy.collator, policy.device
    entries = [collator.load(collator.condition_key(sample), sample, "prompt embeddings") for sample in samples]
    conditions = {name: torch.stack([entry[name] for entry in entries]).to(device) for name in entries[0]}
    blank = None
    if config.guidance > 1:
        policy.encode_blank()
        blank = {name: value[None].to(device) for name, value in collator.blank().items()}
    return conditions, blank, torch.full((len(samples),), config.guidance, device=device)


@dataclass(frozen=True)
class GradientPlan:
    """How `DenoisingPolicy.forward` draws samples whose pixels carry a gradient.

    ``last``: DRaFT-K, all steps are taken and the last K keep their gradient. ``late``: ReFL, each sample stops at a step
    drawn from these two (both included), and its response is predicted from there at once; only that step has a gradient.
    """

    sampler: SamplerConfig
    last: int | None = None
    late: tuple[int, int] | None = None


def sample_with_gradient(policy: DenoisingPolicy, batch: Batch, plan: GradientPlan) -> Tensor:
    """Return decoded responses ``[N, ...]`` to the batch's prompts, as tensors, from its keyed noise.

    Each step with a gradient is checkpointed: what is kept for the backward pass is one latent per step, and the
    activations of a single step at a time.
    """
    steps = steps_of(policy.schedule.prediction, policy.sampling_grid(plan.sampler.steps), plan.sampler)
    device = policy.device
    conditions, blank, guidance = _conditions(policy, batch.samples, plan.sampler)
    keys = [(policy.collator.seed, sample.draw_key, f"epoch {sample.epoch}", "sample") for sample in batch.samples]
    shapes = [policy.latent_shape(sample.prompt) for sample in batch.samples]

    def noise(step: int) -> Tensor:
        drawn = [torch.randn(shape, generator=keyed_generator(*key, step)) for key, shape in zip(keys, shapes, strict=True)]
        return torch.stack(drawn).to(device)

    def advance(x: Tensor, rows: Tensor, row: Tensor) -> Tensor:
        chosen = {name: value[rows] for name, value in conditions.items()}
        return step_mean(x, guided(policy, x, row[:, 3], chosen, blank, guidance[rows]), row)

    def late(low: int, high: int, key: tuple[str | int, ...]) -> int:
        return int(torch.randint(low, high + 1, (), generator=keyed_generator(*key, "stop")))

    stop = [late(*plan.late, key) if plan.late else len(steps) for key in keys]
    first_with_gradient = len(steps) - (plan.last or 0)
    x = noise(-1)
    table = coefficients(steps).to(device)
    stops = torch.tensor(stop, device=device)
    finished: list[tuple[Tensor, Tensor]] = []
    for number, step in enumerate(steps):
        ends = (stops == number).nonzero().flatten()
        if len(ends):
            row = torch.tensor([[*step.clean, 0.0, step.timestep]], device=device).expand(len(ends), 4)
            finished.append((ends, checkpoint(advance, x[ends], ends, row, use_reentrant=False)))
        goes_on = (stops > number).nonzero().flatten()
        if not len(goes_on):
            break
        row = table[number].expand(len(goes_on), 4)
        if number >= first_with_gradient and plan.last:
            moved = checkpoint(advance, x[goes_on], goes_on, row, use_reentrant=False)
        else:
            with torch.no_grad():
                moved = advance(x[goes_on], goes_on, row)
        if step.std:
            moved = moved + step.std * noise(number)[goes_on]
        x = x.index_copy(0, goes_on, moved)
    for rows, clean in finished:
        x = x.index_copy(0, rows, clean)
    decoded: Tensor = checkpoint(policy.decode_latents, x, use_reentrant=False)
    return decoded
