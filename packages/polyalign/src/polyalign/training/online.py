"""Windows of an online run: the policy answers prompts, rewards judge, and the objective says what was better than expected.

Round r is a pure function of (data, seed, r, weights at its start, and with ``online.lag`` their average): every prompt has its
place in the stream and its own key for the draws, so neither resuming between rounds nor the number of processes or micro-batches
changes what is generated.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import Experience, Objective, Term
from polyalign.policies.base import Policy, Rollout, evaluating
from polyalign.policies.reference import Reference
from polyalign.randomness import keyed_seed
from polyalign.records.samples import Example, Prompt
from polyalign.training.batches import ExampleSource, MicroBatch, Steps, Window
from polyalign.training.config import OnlineConfig, TrainingConfig
from polyalign.training.optimizer import MovingAverage
from polyalign.training.rollouts import Group, Judges, collate_groups
from polyalign.training.window import Totals, largest, total


@dataclass
class Round:
    """What the policy did at one set of weights: this process's micro-batches of each minibatch, and what is to be reported."""

    number: int
    minibatches: list[list[MicroBatch]]
    metrics: dict[str, float]


class RolloutSteps:
    """Maps a step number to its `Window` of rollouts, made when it is asked for: the weights of that moment answer.

    A round serves ``online.minibatches * online.epochs`` steps. ``prompts``: examples of the prompts view. ``demonstrations``:
    windows of responses to imitate, whose micro-batches (without experience) join each step's. ``lagging``: the average that
    answers with ``online.lag``; evaluation is by the latest weights.
    """

    def __init__(
        self,
        prompts: ExampleSource,
        policy: Policy,
        objective: Objective,
        reference: Reference | None,
        judges: Judges,
        online: OnlineConfig,
        config: TrainingConfig,
        demonstrations: Steps | None = None,
        rank: int = 0,
        processes: int = 1,
        lagging: MovingAverage | None = None,
    ) -> None:
        if config.batch_size % processes:
            raise TrainingError(
                f"training.batch_size={config.batch_size} does not divide over {processes} processes; use a multiple of that"
            )
        if len(prompts) == 0:
            raise TrainingError("the training data gives no prompts; check data.train and data.tags")
        self.prompts, self.policy, self.objective, self.reference, self.judges = prompts, policy, objective, reference, judges
        self.online, self.config, self.demonstrations = online, config, demonstrations
        self.rank, self.processes, self.lagging = rank, processes, lagging
        self._round: Round | None = None

    def loader(self, first_step: int, last_step: int, workers: int, prefetch: int) -> Iterator[Window]:
        """Yield the windows of steps ``first_step`` to ``last_step - 1``, each after the step before it was taken."""
        return (self[step] for step in range(first_step, last_step))

    def __getitem__(self, step: int) -> Window:
        number, within = divmod(step, self.online.steps_per_round)
        if self._round is None or self._round.number != number:
            self._round = None  # the old one need not be in memory beside the new
            self._round = self._rolled_out(number)
        micro_batches = list(self._round.minibatches[within % self.online.minibatches])
        if self.demonstrations is not None:
            micro_batches += self.demonstrations[step].micro_batches
        return Window(step, micro_batches, self._round.metrics)

    def evaluate(self, held_out: ExampleSource) -> dict[str, float]:
        """Return the mean rewards of one response to each of the first held-out prompts, by keys that never change."""
        count = min(len(held_out), self.config.eval_batches * (self.config.micro_batch_size or self.config.batch_size))
        examples = [held_out[index] for index in range(self.rank, count, self.processes)]
        groups = self._answered(examples, [0] * len(examples), keyed_seed(self.config.seed, "evaluate"), 1, self.online.decoding)
        return _reported(groups)

    def _rolled_out(self, number: int) -> Round:
        with self._answering(number):
            groups = self._groups(number)
        if self.objective.appraises_with is None and self.online.pairs == "best_worst":
            kept = [group.extremes() for group in groups]  # the others stand in no preference
        else:
            kept = groups
        longest = largest(max((_longest(rollout) for group in groups for rollout in group.rollouts), default=0))
        share = self.config.batch_size // self.processes
        size = self.config.micro_batch_size or share
        minibatches = []
        for start in range(0, len(kept), share):
            places = range(start, start + share, size)
            parts = [kept[at : min(at + size, start + share)] for at in places]
            minibatches.append([collate_groups(part, self.policy.collator, self.online.pairs, longest) for part in parts])
        metrics = _reported(groups)
        if self.objective.appraises_with is not None:
            metrics |= self._appraise([micro for minibatch in minibatches for micro in minibatch])
        return Round(number, minibatches, metrics)

    # answering

    def _answering(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the weights that answer a round are in place."""
        if self.lagging is None or self.online.lag is None:
            return contextlib.nullcontext()
        self.lagging.update(self.online.lag.kept(number))
        return self.lagging.in_place()

    def _groups(self, number: int) -> list[Group]:
        """Answer this process's prompts of a round; with ``resample`` flat groups make way for the answers to other prompts."""
        groups: dict[int, Group] = {}
        decoding = self.policy.decoding_at(self.online.decoding, number)
        for attempt in range(self.online.resample + 1):
            places = [place for place in self._own() if place not in groups or groups[place].flat]
            if not places:
                break
            examples, repeats = self._places(number, attempt)
            seed = keyed_seed(self.config.seed, "rollout", number, attempt)
            answered = self._answered(
                [examples[place] for place in places],
                [repeats[place] for place in places],
                seed,
                self.online.samples_per_prompt,
                decoding,
            )
            groups |= dict(zip(places, answered, strict=True))
        return [groups[place] for place in self._own()]

    def _own(self) -> list[int]:
        """Return which places of a round are this process's: its share of every minibatch."""
        share = self.config.batch_size // self.processes
        first = [minibatch * self.config.batch_size + self.rank * share for minibatch in range(self.online.minibatches)]
        return [place for start in first for place in range(start, start + share)]

    def _places(self, number: int, attempt: int) -> tuple[list[Example], list[int]]:
        """Return the examples that stand at all places of a round, and how often each one's prompt stood at a place before.

        Further attempts take their prompts from a stream of their own.
        """
        count = self.config.batch_size * self.online.minibatches
        examples, repeats, seen = [], [], Counter[tuple[object, ...]]()
        for place in range(number * count, (number + 1) * count):
            if attempt == 0:
                index, _ = self.prompts.position(place, self.config.seed)
            else:
                stream = keyed_seed(self.config.seed, "resample")
                index, _ = self.prompts.position(place * self.online.resample + attempt - 1, stream)
            example = self.prompts[index]
            examples.append(example)
            prompt = example.samples[0].prompt
            repeats.append(seen[prompt])
            seen[prompt] += 1
        return examples, repeats

    def _answered(
        self, examples: Sequence[Example], repeats: Sequence[int], seed: int, each: int, decoding: dict[str, Any]
    ) -> list[Group]:
        """Generate and judge ``each`` responses per example. A prompt that is there twice gets other draws the second time."""
        rollouts: list[tuple[Rollout, ...]] = [()] * len(examples)
        for repeat in sorted(set(repeats)):
            chosen = [at for at, own in enumerate(repeats) if own == repeat]
            firsts = [examples[at].samples[0] for at in chosen]
            prompts = [Prompt.of(first.prompt, first.media, first.conditions) for first in firsts]
            with self._precision():
                made = self.policy.generate(prompts, samples_per_prompt=each, seed=keyed_seed(seed, repeat), **decoding)
            for row, at in enumerate(chosen):
                rollouts[at] = made[row * each : (row + 1) * each]
        flat = [rollout for group in rollouts for rollout in group]
        return self.judges.groups([example.record_id for example in examples], flat, each)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the window is scored too, so that old and new log-probabilities agree."""
        device = next(self.policy.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.config.precision == "bf16")

    # appraising

    def _appraise(self, micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
        """Have the objective fill in the experience of a round, whole; return how far the policy was from its reference."""
        for micro in micro_batches:
            self._add_scores(micro)
        parts = [micro.feedback.experience for micro in micro_batches]
        decisions = max(micro.batch.mask.shape[-1] for micro in micro_batches)
        masks = _padded([micro.batch.mask for micro in micro_batches], decisions)
        assert masks is not None
        groups, offset = [], 0
        for micro in micro_batches:
            groups.append(micro.feedback.group + offset)
            offset += micro.feedback.groups
        whole = Experience(
            **{name: _padded([getattr(part, name) for part in parts], decisions) for name in _TENSORS},  # type: ignore[arg-type]
            longest=parts[0].longest if parts[0] else 0,
        )
        done = self.objective.appraise(whole, masks, torch.cat(groups), total)  # type: ignore[arg-type]
        first = 0
        for micro in micro_batches:
            rows = torch.arange(first, first + len(micro.batch))
            first += len(micro.batch)
            micro.feedback.experience = done.rows(rows, micro.batch.mask.shape[-1])
        if whole.reference_log_probs is None or whole.old_log_probs is None:
            return {}
        totals = Totals()
        gap = torch.where(masks, whole.old_log_probs - whole.reference_log_probs, 0.0)
        totals.add(
            {"rollout/kl": Term(gap.sum(), masks.sum()), "rollout/kl_per_response": Term(gap.sum(), torch.tensor(len(gap)))}
        )
        return totals.reduce().means()

    @torch.no_grad()
    def _add_scores(self, micro: MicroBatch) -> None:
        """Add reference scores and values to the micro-batch's experience, where the objective appraises with them."""
        wanted, experience = self.objective.appraises_with or frozenset(), micro.feedback.experience
        assert experience is not None
        if not wanted:
            return
        batch = micro.batch.to(next(self.policy.parameters()).device)
        with self._precision():
            if "reference" in wanted:
                assert self.reference is not None
                experience = replace(experience, reference_log_probs=self.reference(batch).log_probs.cpu())
            if "values" in wanted:
                with evaluating(self.policy):
                    values = self.policy(batch, frozenset({"values"})).extras["values"].float().cpu()
                experience = replace(experience, old_values=values)
        micro.feedback.experience = experience


_TENSORS = ("rewards", "advantages", "old_log_probs", "reference_log_probs", "old_values", "returns", "decision_rewards")


def _padded(parts: Sequence[Tensor | None], decisions: int) -> Tensor | None:
    """Join tensors of samples, padded to ``decisions`` where they have any; None where any part is None."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return torch.cat(
        [part if part.ndim == 1 else torch.nn.functional.pad(part, (0, decisions - part.shape[-1])) for part in known]
    )


def _longest(rollout: Rollout) -> int:
    """Return the most decisions that the response could have had; where nothing limits it, those that it has."""
    limit = rollout.decoding.get("max_new_tokens")
    if limit is not None:
        return int(limit)
    return rollout.old_log_probs.numel() if rollout.old_log_probs is not None else 0


def _reported(groups: Sequence[Group]) -> dict[str, float]:
    """Return means over all processes: rewards and their standard deviations, lengths, perplexity, groups that teach nothing."""
    totals = Totals()
    names = sorted({name for group in groups for name in group.judgements})
    columns = {"reward": [reward for group in groups for reward in group.rewards]}
    columns |= {f"reward/{name}": [value for group in groups for value in group.judgements[name]] for name in names}
    for name, values in columns.items():
        column = torch.tensor(values, dtype=torch.float64)
        count = torch.tensor(float(len(column)))
        totals.add({name: Term(column.sum(), count), f"{name}_squared": Term(column.square().sum(), count)})
    flat = torch.tensor([float(group.flat) for group in groups if len(group.rewards) > 1])
    totals.add({"rollout/flat_groups": Term(flat.sum(), torch.tensor(float(len(flat))))})
    likelihoods = [
        rollout.old_log_probs.flatten() for group in groups for rollout in group.rollouts if rollout.old_log_probs is not None
    ]
    decisions, known = sum(map(len, likelihoods)), torch.tensor(float(len(likelihoods)))
    total_log_prob = sum((float(one.double().sum()) for one in likelihoods), 0.0)
    totals.add({"rollout/length": Term(torch.tensor(float(decisions)), known)})
    totals.add({"surprisal": Term(torch.tensor(-total_log_prob), torch.tensor(float(decisions)))})
    means = totals.reduce().means()
    for name in columns:
        if name in means:
            means[f"{name}_std"] = math.sqrt(max(0.0, means.pop(f"{name}_squared") - means[name] ** 2))
    if "surprisal" in means:
        means["rollout/perplexity"] = math.exp(means.pop("surprisal"))
    return means
