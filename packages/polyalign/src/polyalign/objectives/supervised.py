"""Supervised fine-tuning: raise the log-probability of the responses shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from polyalign.objectives.base import RESPONSE, FeedbackTensors, Objective, Term
from polyalign.objectives.config import SFTConfig
from polyalign.objectives.margins import scale_per_kind
from polyalign.policies.base import Kind, Scores


class SFT(Objective):
    """Mean negative log-probability per decision, over all decisions of all responses of the step.

    A mean over decisions, not over responses: long responses count more, as in TRL's SFTTrainer and its "sft" loss.
    Samples with another role than response (KTO's mismatches) are left out. With several draws every draw's decisions
    count. For tokens it is the cross-entropy; for denoising it is 1/2 of the usual mean squared error.
    There is no fixed value at the reference.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    scope: ClassVar = "edge"

    def __init__(self, config: SFTConfig | None = None) -> None:
        super().__init__()
        self.config = config or SFTConfig()
        self.kind_scale = scale_per_kind(self.config.kind_scale)

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"nll": (negative sum of log-probabilities, number of decisions)}``."""
        counted = feedback.role == RESPONSE  # [N]
        return {"nll": negative_log_likelihood(scores, counted.to(scores.log_probs.dtype), self.kind_scale)}


def negative_log_likelihood(scores: Scores, weight: Tensor, kind_scale: Mapping[Kind, float] | None = None) -> Term:
    """Return (weighted sum of negative log-probabilities, weighted number of decisions); ``weight`` ``[N]`` per sample."""
    totals = scores.reduced("sum", kind_scale).sum(-1)  # [N]
    decisions = scores.mask.sum((-2, -1))  # [N]
    # A sample that does not count may hold anything, NaN included: choose, do not multiply by zero.
    counted = torch.where(weight > 0, totals, 0.0)
    return Term(-(weight * counted).sum(), (weight * decisions).sum())
