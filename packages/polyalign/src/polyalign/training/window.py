"""One optimiser step's worth of loss: exact over any split into micro-batches and processes.

The loss of a window is, per term, (total of sums) / (total of weights) over all micro-batches and all processes.
Weights are known before the first forward pass, so each micro-batch is back-propagated once, already scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import Objective, Term, averaged
from polyalign.objectives.metrics import preference_metrics
from polyalign.policies.base import Batch, Scores
from polyalign.policies.reference import Reference
from polyalign.training.batches import MicroBatch

Score = Callable[..., Scores]  # the (possibly wrapped) policy's forward
Backward = Callable[[Tensor, bool], None]  # (loss, is this the window's last micro-batch)


class NonFiniteLoss(TrainingError):
    """The loss is not a finite number; the message names the records."""


@dataclass
class Totals:
    """Running (sum, weight) pairs by name, added up over micro-batches and, on demand, over processes."""

    pairs: dict[str, Tensor] = field(default_factory=dict)

    def add(self, terms: Mapping[str, Term]) -> None:
        for name, term in terms.items():
            pair = torch.stack([term.sum.detach().double().cpu(), term.weight.detach().double().cpu()])
            self.pairs[name] = self.pairs[name] + pair if name in self.pairs else pair

    def reduce(self) -> Totals:
        """Add up over all processes. Every process must hold the same names."""
        if processes() > 1 and self.pairs:
            names = sorted(self.pairs)
            stacked = torch.stack([self.pairs[name] for name in names])
            dist.all_reduce(stacked)
            self.pairs = {name: stacked[row] for row, name in enumerate(names)}
        return self

    def weight(self, name: str) -> float:
        return float(self.pairs[name][1])

    def means(self) -> dict[str, float]:
        """Return sum / weight by name; names of zero weight are left out."""
        return {name: float(pair[0] / pair[1]) for name, pair in self.pairs.items() if float(pair[1]) != 0.0}


def total(tensor: Tensor) -> Tensor:
    """Return the tensor added up over all processes; every process must call it."""
    if processes() == 1:
        return tensor
    summed = tensor.clone()
    dist.all_reduce(summed)
    return summed


def largest(number: int) -> int:
    """Return the largest of all processes' numbers; every process must call it."""
    if processes() == 1:
        return number
    everywhere = [0] * processes()
    dist.all_gather_object(everywhere, number)
    return max(everywhere)


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class WindowLoss:
    """Scores windows with one policy, reference and objective. ``further``: references besides, by name."""

    def __init__(
        self,
        score: Score,
        reference: Reference | None,
        objective: Objective,
        device: torch.device | str,
        precision: Literal["fp32", "bf16"] = "fp32",
        further: Mapping[str, Reference] | None = None,
    ) -> None:
        self.further = dict(further or {})
        self.score, self.reference, self.objective = score, reference, objective
        self.device, self.precision = torch.device(device), precision
        self.needs_reference = "reference" in objective.needs
        if self.needs_reference and reference is None:
            raise TrainingError("this objective compares with a reference, but reference.kind is 'none'; use auto")

    def train(self, micro_batches: list[MicroBatch], backward: Backward) -> dict[str, float]:
        """Back-propagate the window's loss; return its terms and preference metrics, averaged over the window.

        Raises `NonFiniteLoss` on every process, naming the records of the first bad micro-batch on each.
        """
        self.objective.train()
        weights = self._weights(micro_batches)
        statistics = self._statistics(micro_batches)
        totals = Totals()
        bad: list[str] = []
        for number, micro in enumerate(micro_batches):
            micro, references, scores = self._scored(micro)
            if statistics is None and self.objective.statistic_names:  # the window is this micro-batch
                statistics = averaged(self.objective.statistics(scores.detach(), references, micro.feedback))
            terms = self.objective(scores, references, micro.feedback, statistics)
            anchor = torch.where(scores.mask, scores.log_probs, 0.0).sum() * 0.0  # a graph even where nothing is compared
            loss = sum((term.sum / weights[name] for name, term in terms.items() if weights[name]), anchor)
            if not torch.isfinite(loss):
                bad = bad or self._culprits(micro, scores)
                loss = torch.nan_to_num(scores.log_probs).sum() * 0.0
            backward(loss * processes(), number == len(micro_batches) - 1)  # DDP averages gradients; we want their sum
            totals.add({f"loss/{name}": term for name, term in terms.items()})
            totals.add(self._metrics(scores, references, micro))
        values = self._finish(totals, bad)
        if statistics is not None:
            self.objective.observe(statistics)
        return values

    @torch.no_grad()
    def evaluate(self, micro_batches: list[MicroBatch]) -> dict[str, float]:
        """Return the same numbers without gradients; the objective's own state stands still."""
        self.objective.eval()
        statistics = self._statistics(micro_batches)
        totals = Totals()
        for micro in micro_batches:
            micro, references, scores = self._scored(micro)
            terms = self.objective(scores, references, micro.feedback, statistics)
            totals.add({f"loss/{name}": term for name, term in terms.items()})
            totals.add(self._metrics(scores, references, micro))
        return self._finish(totals, [])

    def _finish(self, totals: Totals, bad: list[str]) -> dict[str, float]:
        if processes() > 1:
            everywhere: list[list[str]] = [[] for _ in range(processes())]
            dist.all_gather_object(everywhere, bad)
            bad = [name for part in everywhere for name in part]
        if bad:
            raise NonFiniteLoss(
                f"the loss is not finite; records {', '.join(map(repr, bad[:8]))}{' ...' if len(bad) > 8 else ''}. "
                "Look at them with `polyalign data preview`, lower the learning rate or beta, or use fp32"
            )
        means = totals.reduce().means()
        terms = [value for name, value in means.items() if name.startswith("loss/")]
        return {"loss": sum(terms), **means}

    def _weights(self, micro_batches: list[MicroBatch]) -> dict[str, float]:
        totals = Totals()
        for micro in micro_batches:
            weights = self.objective.weights(micro.batch.mask, micro.batch.kind, micro.feedback)
            totals.add({name: Term(torch.zeros(()), weight) for name, weight in weights.items()})
        totals.reduce()
        return {name: totals.weight(name) for name in totals.pairs}

    def _statistics(self, micro_batches: list[MicroBatch]) -> dict[str, Tensor] | None:
        """Gather what a batch-scope objective needs over the whole window, when the window is split."""
        if self.objective.scope != "batch" or (len(micro_batches) == 1 and processes() == 1):
            return None
        if not self.objective.splittable:
            raise TrainingError(
                f"{type(self.objective).__name__} needs the whole batch at once: "
                "use one process and a micro-batch as large as the batch"
            )
        totals, collected = Totals(), dict[str, list[Tensor]]()
        with torch.no_grad():
            for micro in micro_batches:
                micro, references, scores = self._scored(micro)
                for name, value in self.objective.statistics(scores, references, micro.feedback).items():
                    if isinstance(value, Tensor):
                        collected.setdefault(name, []).append(value.cpu())
                    else:
                        totals.add({name: value})
        means = totals.reduce().means()
        rows = {name: torch.cat(parts).to(self.device) for name, parts in _from_everywhere(collected).items()}
        return {
            name: rows[name] if name in rows else torch.tensor(means.get(name, 0.0), device=self.device)
            for name in self.objective.statistic_names
        }

    def _scored(self, micro: MicroBatch) -> tuple[MicroBatch, dict[str, Scores], Scores]:
        """Return the micro-batch on the device, its reference scores (first, so that no policy graph is alive beside
        them) and its scores. Both run in one precision; policies sum their scores in float32 outside autocast."""
        micro = MicroBatch(micro.batch.to(self.device), micro.feedback.to(self.device), micro.record_ids)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            references = self._references(micro.batch)
            return micro, references, self.score(self.objective.arranged(micro.batch), self.objective.wants)

    def _references(self, batch: Batch) -> dict[str, Scores]:
        if not self.needs_reference or self.reference is None:
            return {}
        wants = self.objective.reference_wants
        named = {"reference": self.reference} | self.further
        return {name: reference(batch, wants) if wants else reference(batch) for name, reference in named.items()}

    def _metrics(self, scores: Scores, references: Mapping[str, Scores], micro: MicroBatch) -> dict[str, Term]:
        with torch.no_grad():
            own = self.objective.metrics(scores, references, micro.feedback)
            return preference_metrics(scores, references.get("reference"), micro.feedback) | own

    def _culprits(self, micro: MicroBatch, scores: Scores) -> list[str]:
        """Name the records whose own scores are not finite, or all of the micro-batch if none stands out."""
        per_sample = torch.where(scores.mask, scores.log_probs, 0.0).sum((1, 2))
        groups = micro.feedback.group[~torch.isfinite(per_sample)].unique().tolist()
        return [micro.record_ids[group] for group in groups] or list(micro.record_ids)


def _from_everywhere(collected: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Return the tensors of all processes, by name. Every process must call it, with the same names."""
    if processes() == 1:
        return collected
    everywhere: list[dict[str, list[Tensor]]] = [{} for _ in range(processes())]
    dist.all_gather_object(everywhere, collected)
    return {name: [part for one in everywhere for part in one[name]] for name in collected}
