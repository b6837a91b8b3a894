"""What one prompt got out of the policy: responses, rewards, and the preferences that they amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import Experience, FeedbackTensors
from polyalign.policies.base import Collator, Rollout
from polyalign.records.samples import Edge, Example, Ranked
from polyalign.rewards.base import Judged, Reward, checked
from polyalign.training.batches import MicroBatch
from polyalign.training.config import OnlineConfig


@dataclass(frozen=True)
class Group:
    """The responses to one prompt. ``rewards`` are trained on, one per rollout; ``judgements`` holds each reward's own numbers
    by name, those never trained on under ``held_out/``. ``earned``: how each reward came about, decision by decision, where a
    judge knows."""

    record_id: str
    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    judgements: Mapping[str, tuple[float, ...]]
    earned: tuple[tuple[float, ...], ...] | None = None

    @property
    def flat(self) -> bool:
        """Whether all responses earn the same, so that comparing them teaches nothing."""
        return max(self.rewards) == min(self.rewards)

    def extremes(self) -> Group:
        """Return the group with only its best and its worst response (the first of each; of a flat group the first and last)."""
        best = self.rewards.index(max(self.rewards))
        worst = len(self.rewards) - 1 if self.flat else self.rewards.index(min(self.rewards))
        kept = (best,) if best == worst else (best, worst)
        judgements = {name: tuple(values[at] for at in kept) for name, values in self.judgements.items()}
        rollouts, rewards = tuple(self.rollouts[at] for at in kept), tuple(self.rewards[at] for at in kept)
        earned = None if self.earned is None else tuple(self.earned[at] for at in kept)
        return Group(self.record_id, rollouts, rewards, judgements, earned)


class Judges:
    """The rewards of an online run, under their names: those trained on, with their weights, and those held out."""

    def __init__(self, config: OnlineConfig, trained: Mapping[str, Reward], held_out: Mapping[str, Reward]) -> None:
        self.trained, self.held_out, self.overlong = trained, held_out, config.overlong
        self.weights = config.weights or (1.0,) * len(trained)

    def groups(self, record_ids: Sequence[str], rollouts: Sequence[Rollout], each: int) -> list[Group]:
        """Return one group per record id, of ``each`` rollouts, judged all at once."""
        items = [Judged.of(rollout.prompt, rollout.output) for rollout in rollouts]
        scored = {name: checked(name, reward.evaluate(items), len(items)) for name, reward in self.trained.items()}
        named = {name: one.values for name, one in scored.items()}
        rewards = [sum(w * value for w, value in zip(self.weights, values)) for values in zip(*named.values(), strict=True)]
        rewards = [reward - self._too_long(rollout) for reward, rollout in zip(rewards, rollouts, strict=True)]
        earned = self._earned(rollouts, items, rewards)
        scored |= {f"held_out/{name}": checked(name, r.evaluate(items), len(items)) for name, r in self.held_out.items()}
        named = {name: one.values for name, one in scored.items()}
        named |= {f"{name}/{aspect}": values for name, one in scored.items() for aspect, values in one.aspects.items()}
        groups = []
        for number, record_id in enumerate(record_ids):
            own = slice(number * each, (number + 1) * each)
            judgements = {name: tuple(values[own]) for name, values in named.items()}
            parts = None if earned is None else tuple(earned[own])
            groups.append(Group(record_id, tuple(rollouts[own]), tuple(rewards[own]), judgements, parts))
        return groups

    def _earned(
        self, rollouts: Sequence[Rollout], items: Sequence[Judged], rewards: Sequence[float]
    ) -> list[tuple[float, ...]] | None:
        """Return what each decision earned, adding up to ``rewards``; None if no judge tells decisions apart. What is not told
        apart, penalties too, falls due at the last decision."""
        told = [(weight, reward.per_decision(items)) for weight, reward in zip(self.weights, self.trained.values())]
        known = [(weight, parts) for weight, parts in told if parts is not None]
        if not known:
            return None
        earned = []
        for at, (rollout, reward) in enumerate(zip(rollouts, rewards, strict=True)):
            total = torch.zeros(rollout.old_log_probs.numel() if rollout.old_log_probs is not None else len(known[0][1][at]))
            for weight, parts in known:
                if len(parts[at]) != len(total):
                    raise TrainingError(
                        f"a reward told {len(parts[at])} decisions apart in a response of {len(total)}; it must name each one"
                    )
                total += weight * torch.tensor(parts[at])
            total[-1] += reward - float(total.double().sum())
            earned.append(tuple(total.tolist()))
        return earned

    def state(self) -> dict[str, Any]:
        """Return what the rewards keep between rounds (running normalisations), for the checkpoint; see `restore`."""
        return {name: state for name, reward in self.trained.items() if (state := reward.state())}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, reward in self.trained.items():
            reward.restore(state.get(name, {}))

    def _too_long(self, rollout: Rollout) -> float:
        """Return what a response loses for its length: 0 until the buffer, then in equal steps up to the whole penalty."""
        if self.overlong is None:
            return 0.0
        if rollout.old_log_probs is None or "max_new_tokens" not in rollout.decoding:
            raise TrainingError("online.overlong is for responses of varying length; these have no limit to run into; drop it")
        room = int(rollout.decoding["max_new_tokens"]) - rollout.old_log_probs.numel()
        return self.overlong.penalty * min(1.0, max(0.0, 1 - room / self.overlong.buffer))


def collate_groups(groups: Sequence[Group], collator: Collator, pairs: str, longest: int) -> MicroBatch:
    """Return the groups as one micro-batch, their experience not yet appraised. ``longest``: see `Experience`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    batch = collator.of_rollouts(rollouts)
    examples, start = [], 0
    for group in groups:
        samples = batch.samples[start : start + len(group.rollouts)]
        start += len(samples)
        ranks = sorted(set(group.rewards), reverse=True)
        ranked = tuple(Ranked(at, ranks.index(reward)) for at, reward in enumerate(group.rewards))
        examples.append(Example(group.record_id, samples, edges=preferences(group.rewards, pairs), rankings=ranked))
    feedback = FeedbackTensors.of(examples)
    rewards = torch.tensor([reward for group in groups for reward in group.rewards], dtype=torch.float32)
    parts = [part for group in groups for part in group.earned or ()]
    feedback.experience = Experience(
        rewards,
        torch.zeros_like(rewards),
        _old_log_probs(rollouts, batch.mask),
        decision_rewards=_per_decision(parts, batch.mask) if parts else None,
        longest=longest,
    )
    return MicroBatch(batch, feedback, tuple(group.record_id for group in groups))


def preferences(rewards: Sequence[float], pairs: str) -> tuple[Edge, ...]:
    """Return edges from better to worse among the responses of a group: the first best over the first worst, or with "all"
    every two that differ. Equal rewards prefer nothing."""
    if pairs == "best_worst":
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        return (Edge(best, worst),) if rewards[best] > rewards[worst] else ()
    ordered = [(a, b) if rewards[a] > rewards[b] else (b, a) for a, b in combinations(range(len(rewards)), 2)]
    return tuple(Edge(better, worse) for better, worse in ordered if rewards[better] > rewards[worse])


def _old_log_probs(rollouts: Sequence[Rollout], mask: Tensor) -> Tensor | None:
    """Lay out what each rollout knows of its own likelihood where the batch has its decisions, ``[N, D, T]``."""
    known = [rollout.old_log_probs.flatten() for rollout in rollouts if rollout.old_log_probs is not None]
    if len(known) < len(rollouts):
        return None
    counts = mask.sum((1, 2)).tolist()
    assert [len(one) for one in known] == counts, f"rollouts have {[len(one) for one in known]} decisions, the batch {counts}"
    laid_out = torch.zeros(mask.shape)
    if known:
        laid_out[mask] = torch.cat(known).float().cpu()
    return laid_out


def _per_decision(parts: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Lay out what each decision earned where the batch has it, ``[N, T]``. Draws share their decisions."""
    laid_out = torch.zeros(mask.shape[0], mask.shape[-1])
    laid_out[mask[:, 0]] = torch.tensor([value for part in parts for value in part])
    return laid_out
