"""The exponential preference loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Objective, Term
from polyalign.policies.base import Scores
from polyalign_third_party_example.config import ExponentialConfig


class Exponential(Objective):
    """``exp(-beta * margin)`` per preference, with DPO's margin; 1 at the reference."""

    needs = frozenset({"reference", "edges"})
    value_at_reference = 1.0

    def __init__(self, config: ExponentialConfig) -> None:
        super().__init__()
        self.beta = config.beta

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        ratios = scores.reduced() - references["reference"].reduced()  # [N, D]
        edges = feedback.edges
        losses = torch.exp(-self.beta * (ratios[edges.better] - ratios[edges.worse])).mean(-1)  # [E]
        return {"exponential": Term((edges.weight * losses).sum(), edges.weight.sum())}
