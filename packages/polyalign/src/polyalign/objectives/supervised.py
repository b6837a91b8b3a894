"""Supervised fine-tuning: raise the log-probability of the responses shown, or of those that feedback prefers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyalign.objectives.base import RESPONSE, Edges, FeedbackTensors, Term
from polyalign.objectives.config import SFTConfig
from polyalign.objectives.margins import Configured, rows
from polyalign.policies.base import Kind, Scores


class SFT(Configured[SFTConfig]):
    """Mean negative log-probability per decision, over all decisions of the responses worth imitating.

    Those are all responses of the step that no row edge calls worse and no label undesirable, so that the objective means
    the same in every view: all of the sft view, the better sides of the pairs view (TRL's "sft" term in a mixed loss).
    Samples with another role than response (KTO's mismatches) are left out.

    A mean over decisions, not over responses: long responses count more, as in TRL's SFTTrainer and its "sft" loss.
    With several draws every draw's decisions count. For tokens it is the cross-entropy; for denoising it is 1/2 of the
    usual mean squared error. There is no fixed value at the reference.
    """

    Config = SFTConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"nll": (negative sum of log-probabilities, number of decisions)}``."""
        counted = worth_imitating(feedback).to(scores.log_probs.dtype)  # [N]
        return {"nll": negative_log_likelihood(scores, counted, self.kind_scale)}


def worth_imitating(feedback: FeedbackTensors) -> Tensor:
    """Return which samples are responses that nothing calls bad: no row edge (of weight > 0) worse, no label undesirable; [N]."""
    edges = rows(feedback)
    good = (feedback.role == RESPONSE) & (feedback.label >= 0)
    good[edges.worse[edges.weight > 0]] = False
    return good


def wins(feedback: FeedbackTensors, edges: Edges | None = None) -> Tensor:
    """Return the total weight of the edges that each sample wins, ``[N]``; by default of the row edges as recorded."""
    edges = rows(feedback) if edges is None else edges
    return torch.zeros(len(feedback.role), device=edges.weight.device).index_add(0, edges.better, edges.weight)


def negative_log_likelihood(scores: Scores, weight: Tensor, kind_scale: Mapping[Kind, float] | None = None) -> Term:
    """Return (weighted sum of negative log-probabilities, weighted number of decisions); ``weight`` ``[N]`` per sample."""
    totals = scores.reduced("sum", kind_scale).sum(-1)  # [N]
    decisions = scores.mask.sum((-2, -1))  # [N]
    # A sample that does not count may hold anything, NaN included: choose, do not multiply by zero.
    counted = torch.where(weight > 0, totals, 0.0)
    return Term(-(weight * counted).sum(), (weight * decisions).sum())
