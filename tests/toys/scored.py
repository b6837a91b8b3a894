"""Scores and feedback from plain numbers, in float64, with NaN wherever there is only padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from polyalign.objectives.base import FeedbackTensors, Objective, Term
from polyalign.policies.base import Kind, Scores
from polyalign.records.samples import Edge, Example, Sample

Draws = Sequence[Sequence[float]]  # [D][T] of one sample, ragged over samples


def scores_of(samples: Sequence[Draws], kind: Kind = Kind.TOKEN, kinds: Sequence[Sequence[Kind]] | None = None) -> Scores:
    """``samples[n][d][t]`` becomes a padded `Scores` whose log_probs are a float64 leaf that requires gradients."""
    draws = max((len(sample) for sample in samples), default=1)
    decisions = max((len(row) for sample in samples for row in sample), default=1)
    log_probs = torch.full((len(samples), draws, decisions), float("nan"), dtype=torch.float64)
    for n, sample in enumerate(samples):
        for d, row in enumerate(sample):
            log_probs[n, d, : len(row)] = torch.tensor(row, dtype=torch.float64)
    mask = ~log_probs.isnan()
    kind_of = torch.full((len(samples), decisions), int(kind))
    for n, row in enumerate(kinds or ()):
        kind_of[n, : len(row)] = torch.tensor([int(k) for k in row])
    return Scores(log_probs.requires_grad_(), mask, kind_of)


def example(
    count: int,
    edges: Sequence[Edge] = (),
    labels: Sequence[int] = (),
    mismatched: Sequence[int] = (),
    name: str = "r",
) -> Example:
    """An example of ``count`` samples; those listed in ``mismatched`` only estimate a statistic."""
    samples = tuple(Sample(f"{name}/{i}", (), (), name, role="mismatch" if i in mismatched else "response") for i in range(count))
    return Example(name, samples, edges=tuple(edges), labels=tuple(labels))


def pair(**edge: float) -> Example:
    """Two samples, the first better than the second."""
    return example(2, [Edge(0, 1, **edge)])  # type: ignore[arg-type]


GRID_ROWS = (Edge(0, 1), Edge(3, 2))  # samples: (x1, y1), (x1, y2), (x2, y1), (x2, y2)
GRID_COLUMNS = (Edge(0, 2, contrast="prompt"), Edge(3, 1, contrast="prompt"))


def grid(weight: float = 1.0) -> Example:
    """An InstructEngine grid with its row and column edges."""
    edges = [Edge(e.better, e.worse, weight=weight, contrast=e.contrast) for e in (*GRID_ROWS, *GRID_COLUMNS)]
    return example(4, edges)


def feedback_of(*examples: Example) -> FeedbackTensors:
    return FeedbackTensors.of(examples)


def terms_of(objective: Objective, scores: Scores, reference: Scores | None, feedback: FeedbackTensors) -> dict[str, Term]:
    return objective(scores, {"reference": reference} if reference is not None else {}, feedback)


def loss_of(objective: Objective, scores: Scores, reference: Scores | None, feedback: FeedbackTensors) -> torch.Tensor:
    """The loss as the trainer forms it: per term sum / weight, added up; terms of zero weight cost nothing."""
    terms = terms_of(objective, scores, reference, feedback)
    return sum((term.sum / term.weight for term in terms.values() if term.weight), scores.log_probs.nansum() * 0.0)


def gradient(loss: torch.Tensor, scores: Scores) -> torch.Tensor:
    """d loss / d log_probs with padding at zero, ``[N, D, T]``."""
    (grad,) = torch.autograd.grad(loss, scores.log_probs)
    return grad
