"""AOT: the distribution of rewards over the whole batch is pushed up, rank by rank, instead of each pair's own margin."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Term, averaged
from polyalign.objectives.config import AOTConfig
from polyalign.objectives.links import smoothed_sigmoid
from polyalign.objectives.margins import Configured, log_ratios, margins, real_draws, rows, sides
from polyalign.policies.base import Scores


class AOT(Configured[AOTConfig]):
    """Alignment via Optimal Transport (Melnyk et al. 2024, arXiv 2406.05882), on pairs or unpaired.

    Two lists of numbers over the step's row edges are sorted, and the k-th smallest of the first is asked to exceed the k-th
    smallest of the second: ``-(1 - e) log sigma(u_(k) - v_(k)) - e log sigma(-(u_(k) - v_(k)))``, smoothing e.

    - ``aot``: u is the policy's ``beta * (log pi(better) - log pi(worse)) - margin``, v the reference's beta * difference.
    - ``aot_unpaired``: u are the better rewards ``beta X - margin / 2``, v the worse ones ``beta X + margin / 2``, with X the
      log-ratio; who was compared with whom is forgotten.

    An edge of weight 2 stands for two equal ones, and fractions likewise: sorted masses are laid side by side, and a value
    meets every value that lies across from it (the monotone coupling), which for equal weights is the sorting above.

    The sorting is over all micro-batches and processes of a step, exactly: `statistics` collects the numbers of a pass
    without gradients. TRL 1.16 has the same two formulas but sorts each micro-batch by itself, so that its loss depends on
    how a step is split.

    Denoising: a pair's draws are so many values of its weight split between them; the batch's distribution is then that of
    noisy estimates, wider than the rewards', and the order between distributions is nominal. At the reference: ln 2 (with
    edges of equal margin 0).
    """

    needs = frozenset({"reference", "edges"})
    scope = "batch"
    statistic_names = ("values",)
    Config = AOTConfig

    def __init__(self, config: AOTConfig | None = None) -> None:
        super().__init__(config)
        self.value_at_reference = math.log(2)

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of coupled mass * loss, sum of edge weights)}``."""
        upper, lower, mass = self._values(scores, references, feedback)
        everyone = (statistics or averaged(self.statistics(scores, references, feedback)))["values"]
        all_upper, all_lower, all_mass = everyone[everyone[:, 2] > 0].unbind(-1)
        shares, others = coupling(upper, mass, all_upper, all_lower, all_mass)
        total = (shares * self._loss(upper[:, None] - others)).sum()
        if not self.config.paired:
            # Each side of a coupled pair learns in the micro-batch it is in, so the loss is seen twice: count it half.
            shares, others = coupling(lower, mass, all_lower, all_upper, all_mass)
            total = total + (shares * self._loss(others - lower[:, None])).sum()
            total = total - total.detach() / 2
        return {"preference": Term(total, rows(feedback, self.config).weight.sum())}

    def statistics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term | Tensor]:
        """Return the numbers to be sorted, ``[E * D, 3]``: upper, lower, mass."""
        with torch.no_grad():
            return {"values": torch.stack(self._values(scores, references, feedback), -1)}

    def _values(
        self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return upper and lower values and their mass, ``[E * D]`` each; a draw that is padding has no mass."""
        edges, real, beta = rows(feedback, self.config), real_draws(scores), self.config.beta
        if self.config.paired:
            upper = beta * margins(log_ratios(scores, None, "sum", self.kind_scale), edges) - edges.margin[:, None]
            lower = beta * margins(log_ratios(references["reference"], None, "sum", self.kind_scale), edges).detach()
        else:
            upper, lower = sides(beta * log_ratios(scores, references["reference"], "sum", self.kind_scale), edges)
        drawn = (real[edges.better] | real[edges.worse]).to(upper.dtype)  # [E, D]
        mass = edges.weight[:, None] * drawn / drawn.sum(-1, keepdim=True).clamp(min=1)
        return upper.flatten(), lower.flatten(), mass.to(upper.dtype).flatten()

    def _loss(self, z: Tensor) -> Tensor:
        return smoothed_sigmoid(z, self.config.label_smoothing)


def nearest(own: Tensor, values: Tensor) -> Tensor:
    """Return the nearest of ``values`` ``[M]`` (sorted) to each of ``own`` ``[A]``: finds values that were computed anew."""
    after = torch.searchsorted(values, own).clamp(1, len(values) - 1) if len(values) > 1 else torch.zeros_like(own).long()
    before = (after - 1).clamp(min=0)
    return torch.where((own - values[before]).abs() <= (values[after] - own).abs(), values[before], values[after])


def coupling(own: Tensor, own_mass: Tensor, pool: Tensor, others: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of each own value's mass lies across from each of the others, ``[A, M]``, and the others sorted, ``[M]``.

    ``own`` ``[A]`` are some of the values of ``pool`` ``[M]``, which like ``others`` ``[M]`` has ``mass`` ``[M]`` > 0. Both are
    sorted and their masses laid side by side. Equal values share what lies across from all of them, so that no order between
    them is needed; a value that was computed anew is found as the nearest in the pool.
    """
    if not len(pool):
        return own.new_zeros(len(own), 0), others
    with torch.no_grad():
        values, order = pool.sort()
        ends = F.pad(mass[order].double().cumsum(0), (1, 0))  # [M + 1]
        found = nearest(own, values)
        low = ends[torch.searchsorted(values, found)][:, None]
        high = ends[torch.searchsorted(values, found, right=True)][:, None]
        sorted_others, order = others.sort()
        other_ends = F.pad(mass[order].double().cumsum(0), (1, 0))
        shared = (torch.minimum(high, other_ends[1:]) - torch.maximum(low, other_ends[:-1])).clamp(min=0)  # [A, M]
        return (own_mass[:, None] * shared / (high - low)).to(own.dtype), sorted_others
