"""How much better a response, or a decision in it, was than expected. Plain tensor functions, all without gradient.

N samples, T decisions. ``group`` ``[N]`` numbers the prompts. ``total`` adds a tensor up over all processes: what is taken over
a whole round is exact on any number of them.
"""

from __future__ import annotations

import torch
from torch import LongTensor, Tensor

from polyalign.objectives.base import Total, alone

SMALLEST_DEVIATION = 1e-4  # added to every standard deviation of rewards, as in GRPO's implementations


def per_group(values: Tensor, group: LongTensor) -> tuple[Tensor, Tensor]:
    """Return (sum, number) over the group of each sample, ``[N]`` each."""
    groups = int(group.max()) + 1 if len(group) else 0
    empty = torch.zeros(groups, dtype=values.dtype, device=values.device)
    return empty.index_add(0, group, values)[group], empty.index_add(0, group, torch.ones_like(values))[group]


def above_group_mean(rewards: Tensor, group: LongTensor) -> Tensor:
    """Return reward minus the mean of the sample's group, ``[N]``: Dr. GRPO (arXiv 2503.20783), GRPO before scaling."""
    sums, counts = per_group(rewards, group)
    return rewards - sums / counts


def group_deviation(rewards: Tensor, group: LongTensor) -> Tensor:
    """Return the standard deviation (n - 1) of the sample's group, ``[N]``; 0 in a group of one."""
    squares, counts = per_group(above_group_mean(rewards, group).square(), group)
    return (squares / (counts - 1).clamp(min=1)).sqrt()


def leave_one_out(rewards: Tensor, group: LongTensor) -> Tensor:
    """Return reward minus the mean of the OTHER samples of its group, ``[N]``; 0 in a group of one (RLOO, arXiv 2402.14740)."""
    sums, counts = per_group(rewards, group)
    return torch.where(counts > 1, rewards - (sums - rewards) / (counts - 1).clamp(min=1), 0.0)


def moments(values: Tensor, total: Total = alone) -> tuple[Tensor, Tensor, Tensor]:
    """Return (number, mean, sum of squared deviations) of all values of all processes, in float64."""
    values = values.double()
    number, sums = total(torch.stack([torch.tensor(float(values.numel()), dtype=torch.float64), values.sum().cpu()]))
    mean = sums / number.clamp(min=1)
    return number, mean, total((values - mean.to(values.device)).square().sum().cpu())


def deviation(values: Tensor, total: Total = alone) -> Tensor:
    """Return the standard deviation (n - 1) of all values of all processes, a scalar; 0 of fewer than two."""
    number, _, squares = moments(values, total)
    return (squares / (number - 1).clamp(min=1)).sqrt().to(values.dtype).to(values.device)


def whitened(values: Tensor, mask: Tensor, total: Total = alone) -> Tensor:
    """Return values with mean 0 and standard deviation 1 over ``mask`` on all processes; 0 elsewhere."""
    number, mean, squares = moments(values[mask], total)
    spread = (squares / (number - 1).clamp(min=1)).sqrt() + SMALLEST_DEVIATION
    return torch.where(mask, (values - mean.to(values)) / spread.to(values), 0.0)


def spread_out(rewards: Tensor, mask: Tensor, per_decision: Tensor | None = None) -> Tensor:
    """Return what each decision is paid, ``[N, T]``: everything at the last real one, or ``per_decision`` where that is known."""
    if per_decision is not None:
        return torch.where(mask, per_decision, 0.0)
    steps = torch.arange(mask.shape[-1], device=mask.device)
    last = torch.where(mask, steps, -1).amax(-1, keepdim=True) if mask.shape[-1] else steps[None]
    return torch.where(mask & (steps == last), rewards[:, None], 0.0)


def to_come(paid: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return the discounted sum of what this and later decisions are paid, ``[N, T]``."""
    return generalised(paid, torch.zeros_like(paid), mask, gamma, 1.0)


def generalised(paid: Tensor, values: Tensor, mask: Tensor, gamma: float, trace: float) -> Tensor:
    """Return generalised advantage estimates ``[N, T]``, 0 outside ``mask``, whose holes are stepped over.

    ``delta_t = paid_t + gamma V_{t+1} - V_t`` and ``A_t = delta_t + gamma * trace * A_{t+1}``, with V = 0 after the last
    decision. Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16; ``trace`` is its lambda.
    """
    advantages = torch.zeros_like(paid)
    next_value = next_advantage = torch.zeros_like(paid[:, 0]) if paid.shape[-1] else paid.new_zeros(len(paid))
    for step in reversed(range(paid.shape[-1])):
        real = mask[:, step]
        found = paid[:, step] + gamma * next_value - values[:, step] + gamma * trace * next_advantage
        advantages[:, step] = torch.where(real, found, 0.0)
        next_advantage = torch.where(real, found, next_advantage)
        next_value = torch.where(real, values[:, step], next_value)
    return advantages
