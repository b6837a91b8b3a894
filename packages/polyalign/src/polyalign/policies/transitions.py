"""Rollouts of denoising models scored again: each stored sampler step under the weights of now."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polyalign.errors import TrainingError
from polyalign.policies.base import Batch, Kind, Noised, Rollout, Scores, Transition
from polyalign.policies.feature_cache import Features
from polyalign.policies.samplers import log_density
from polyalign.records.samples import Sample

if TYPE_CHECKING:
    from polyalign.policies.denoising import DenoisingPolicy
    from polyalign.policies.denoising_collator import DenoisingCollator


def rollout_sample(rollout: Rollout, number: int) -> Sample:
    """Return the sample that stands for a rollout in a batch. Its response is in the decisions, not in its parts."""
    return Sample(f"rollout-{number}", rollout.prompt, rollout.parts, f"rollout-{number}")


def noised_decisions(rollouts: Sequence[Rollout]) -> bool:
    """Return whether the rollouts hold noised responses; False for transitions. Raises `TrainingError` for anything else."""
    kinds: set[type] = {type(decision) for rollout in rollouts for decision in rollout.decisions} or {type(None)}
    if kinds not in ({Noised}, {Transition}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TrainingError(
            f"the decisions of these rollouts are {found}; expected Transition or Noised: draw them with generate(sampler=...)"
        )
    return kinds == {Noised}


@dataclass
class _Transitions:
    """Transitions whose tensors have equal shapes, from any number of rollouts."""

    steps: list[tuple[int, int, Transition]] = field(default_factory=list)  # (row, position in the row, step)
    condition: list[int] = field(default_factory=list)
    conditions: dict[str, Features] = field(default_factory=dict)

    def tensors(self, blank: Features | None) -> dict[str, Any]:
        entries = list(self.conditions.values())
        steps = [step for _, _, step in self.steps]
        made = {
            "place": torch.tensor([(row, position) for row, position, _ in self.steps]),
            "x_t": torch.stack([step.x_t for step in steps]),
            "x_next": torch.stack([step.x_next for step in steps]),
            "coefficients": torch.tensor([(step.state, step.prediction, step.std, step.t) for step in steps]),
            "guidance": torch.tensor([step.guidance for step in steps]),
            "condition": torch.tensor(self.condition),
            "conditions": {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]},
        }
        if any(step.guidance > 1 for step in steps):
            assert blank is not None
            made["blank"] = {name: value[None] for name, value in blank.items()}
        return made


def transition_batch(collator: DenoisingCollator, rollouts: Sequence[Rollout]) -> Batch:
    """Return a batch of T decisions per rollout, padded; each distinct prompt is loaded once."""
    samples = tuple(rollout_sample(rollout, number) for number, rollout in enumerate(rollouts))
    guided = any(step.guidance > 1 for rollout in rollouts for step in rollout.decisions if isinstance(step, Transition))
    blank = collator.blank() if guided else None
    groups: dict[Hashable, _Transitions] = {}
    longest = max(len(rollout.decisions) for rollout in rollouts)
    mask = torch.zeros(len(rollouts), 1, longest, dtype=torch.bool)
    for row, (rollout, sample) in enumerate(zip(rollouts, samples, strict=True)):
        key = collator.condition_key(sample)
        features = collator.load(key, sample, "prompt embeddings")
        shapes = tuple((name, features[name].shape) for name in sorted(features))
        for position, step in enumerate(rollout.decisions):
            assert isinstance(step, Transition)
            group = groups.setdefault((step.x_t.shape, shapes), _Transitions())
            group.conditions.setdefault(key, features)
            group.steps.append((row, position, step))
            group.condition.append(list(group.conditions).index(key))
            mask[row, 0, position] = True
    return Batch(
        samples=samples,
        tensors={"transitions": [group.tensors(blank) for group in groups.values()]},
        mask=mask,  # type: ignore[arg-type]
        kind=torch.full((len(rollouts), longest), int(Kind.TRANSITION)),  # type: ignore[arg-type]
    )


def score_transitions(policy: DenoisingPolicy, batch: Batch) -> Scores:
    """Return ``log_probs`` ``[N, 1, T]``: log-densities of the stored steps, over dimensions as ``policy.reduction`` says.

    With ``policy.rows_at_once`` steps go through the network so many at a time and are computed again for the gradient, so
    that memory does not grow with the number of steps.
    """
    log_probs = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for group in batch.tensors["transitions"]:
        count = len(group["place"])
        at_once = policy.settings.rows_at_once or count
        parts = [_densities(policy, group, slice(start, start + at_once), count) for start in range(0, count, at_once)]
        row, position = group["place"].unbind(1)
        log_probs = log_probs.index_put((row, torch.zeros_like(row), position), torch.cat(parts))
    return Scores(log_probs, batch.mask, batch.kind)


def _densities(policy: DenoisingPolicy, group: Mapping[str, Any], rows: slice, count: int) -> Tensor:
    x_t, coefficients, guidance = group["x_t"][rows], group["coefficients"][rows], group["guidance"][rows]
    conditions = {name: value[group["condition"][rows]] for name, value in group["conditions"].items()}
    inputs = (policy, x_t, coefficients[:, 3], conditions, group.get("blank"), guidance)
    if len(x_t) < count and torch.is_grad_enabled():
        prediction: Tensor = checkpoint(guided, *inputs, use_reentrant=False)
    else:
        prediction = guided(*inputs)
    with torch.autocast(x_t.device.type, enabled=False):
        mean = step_mean(x_t, prediction, coefficients)
        return log_density(group["x_next"][rows], mean, coefficients[:, 2], policy.settings.reduction)


def step_mean(x: Tensor, prediction: Tensor, coefficients: Tensor) -> Tensor:
    """Return ``state * x + prediction * p`` in float32; ``coefficients`` ``[M, 4]`` as `samplers.coefficients` lays them out."""
    state, factor = (coefficients[:, column].reshape(-1, *(1,) * (x.ndim - 1)) for column in (0, 1))
    return state * x.float() + factor * prediction.float()


def guided(
    policy: DenoisingPolicy,
    x: Tensor,
    timesteps: Tensor,
    conditions: dict[str, Tensor],
    blank: Mapping[str, Tensor] | None,
    guidance: Tensor,
) -> Tensor:
    """Return the network's prediction ``[M, ...]``, pushed away from that for the empty prompt by ``guidance`` ``[M]``
    (Ho & Salimans 2022, arXiv 2207.12598). Guidance of 1 or less is none. Both go through the network together."""
    if blank is None:
        return policy.denoise(x, timesteps, conditions)
    both = {name: torch.cat([blank[name].expand_as(value), value]) for name, value in conditions.items()}
    without, given = policy.denoise(x.repeat(2, *(1,) * (x.ndim - 1)), timesteps.repeat(2), both).float().chunk(2)
    return without + guidance.clamp(min=1).reshape(-1, *(1,) * (x.ndim - 1)) * (given - without)
