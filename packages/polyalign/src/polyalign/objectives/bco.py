"""BCO: each response is classified as good or bad, against a running mean of all rewards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Scope, Term, averaged
from polyalign.objectives.config import BCOPairConfig
from polyalign.objectives.margins import edge_term, over_draws, real_draws
from polyalign.objectives.pairwise import DPO
from polyalign.policies.base import Scores


class BCO(DPO):
    """Binary Classifier Optimization on pairs (Jung et al. 2024, arXiv 2404.04656).

    With scaled rewards b and w of the better and the worse response (see `DPO`) an edge costs
    ``-log sigma(b - delta) - log sigma(-(w - delta))``. The baseline delta is the mean over training steps so far, this one
    included, of a step's mean reward ``(b + w) / 2`` (by edge weight); a step without preferences does not count. This is the
    running mean of ms-swift and LLaMA-Factory; TRL 1.16 has given it up: ``baseline: none`` is its loss.

    A step's mean runs over all its micro-batches and processes, through `statistics` (a split step is scored once more to
    get it); ``baseline`` and ``windows`` are buffers, saved and resumed. Held-out data is scored with the baseline of
    training as it stands.

    Denoising: the link is convex and applied per draw, so its mean bounds the loss at the expected rewards; delta is one
    number for all draws. At the reference all rewards and delta are 0: 2 ln 2.
    """

    scope: Scope = "batch"
    statistic_names: tuple[str, ...] = ("reward", "compared")
    Config = BCOPairConfig
    config: BCOPairConfig
    baseline: Tensor
    windows: Tensor

    def __init__(self, config: BCOPairConfig | None = None) -> None:
        super().__init__(config)
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("windows", torch.zeros((), dtype=torch.long))
        if self.config.baseline == "none":
            self.scope, self.statistic_names = "edge", ()

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = self.compared(feedback)
        delta = self.baseline
        if self.scope == "batch" and self.training:
            delta, _ = self._including(statistics or averaged(self.statistics(scores, references, feedback)))
        better, worse = self.rewards(scores, references["reference"], edges)
        return {"preference": edge_term(self.link(better - delta, worse - delta), scores, edges)}

    def statistics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term | Tensor]:
        """Return the sum of mean rewards over edges, and whether there are any."""
        if self.scope != "batch":
            return {}
        with torch.no_grad():
            edges, real = self.compared(feedback), real_draws(scores)
            better, worse = self.rewards(scores, references["reference"], edges)
            reward = over_draws((better + worse) / 2, real[edges.better] | real[edges.worse])  # [E]
            samples = torch.tensor(float(len(feedback.role)), device=reward.device)
            return {
                "reward": Term((edges.weight * reward).sum(), edges.weight.sum()),
                "compared": Term(edges.weight.sum(), samples),
            }

    def observe(self, statistics: Mapping[str, Tensor]) -> None:
        """Take a step into the running mean."""
        if self.scope == "batch":
            baseline, windows = self._including(statistics)
            self.baseline.copy_(baseline)
            self.windows.copy_(windows)

    def _including(self, statistics: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the baseline and the number of steps once this step counts."""
        counts = statistics["compared"] > 0
        windows = self.windows + counts
        step = (statistics["reward"] - self.baseline) / windows.clamp(min=1)
        return self.baseline + torch.where(counts, step, 0.0), windows
