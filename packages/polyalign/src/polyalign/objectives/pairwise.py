"""The DPO family (sigmoid, hinge, IPO, robust, cDPO) and SimPO: a link function on the margin of one preference.

All of them use only the rows among the edges (one prompt, two responses). An edge's ``weight`` multiplies its loss and
counts as so many pairs. An edge's ``margin`` m asks for ``beta * margin >= m``: it is subtracted after beta.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Objective, Term
from polyalign.objectives.config import DPOConfig, SimPOConfig
from polyalign.objectives.margins import edge_term, log_ratios, margins, scale_per_kind
from polyalign.policies.base import Scores


class DPO(Objective):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) and its relatives.

    With ``X = log pi - log pi_ref`` reduced over decisions, ``d = X_better - X_worse``, ``z = beta * d - margin`` and
    smoothing e, the loss of one draw is

    - ``sigmoid``: ``-(1 - e) log sigma(z) - e log sigma(-z)``; e > 0 is cDPO (Mitchell 2023). TRL 1.16 ignores
      label_smoothing here; LLaMA-Factory, ms-swift and OpenRLHF smooth as we do.
    - ``hinge``: ``max(0, 1 - z)`` (SLiC, arXiv 2305.10425, on the DPO margin).
    - ``ipo``: ``(d - margin / beta - 1 / (2 beta))^2`` (arXiv 2310.12036, eq. 17, beta is its tau), on mean log-ratios per
      decision as in TRL and LLaMA-Factory; ``reduction: sum`` gives the paper's letter and OpenRLHF's loss.
    - ``robust``: ``(-(1 - e) log sigma(z) + e log sigma(-z)) / (1 - 2e)`` (Chowdhury et al. 2024, arXiv 2403.00409),
      unbiased if a share e of the labels is flipped. May be negative.

    ``reduction: mean`` with sigmoid is length-normalised DPO (TRL's ``sigmoid_norm``).

    Denoising: a draw's score is ``-1/2 * mean squared error``, hence ``z = -beta/2 * (model_diff - ref_diff)``, which is
    Diffusion-DPO (arXiv 2311.12908) and Flow-DPO with the same beta. The link is applied to every draw and draws are
    averaged after it. A draw estimates the ELBO, so sigmoid and hinge (convex) are upper bounds of the loss at the
    expected margin; ``ipo`` adds the variance of the margin over draws and is IPO in name only; ``robust`` is not convex,
    its label-noise guarantee is about exact likelihoods.

    At the reference: ln 2 for sigmoid and robust, 1 for hinge, ``1 / (4 beta^2)`` for ipo (edges without margin).
    """

    needs = frozenset({"reference", "edges"})
    scope: ClassVar = "edge"

    def __init__(self, config: DPOConfig | None = None) -> None:
        super().__init__()
        self.config = config or DPOConfig()
        self.kind_scale = scale_per_kind(self.config.kind_scale)
        at_reference = {"hinge": 1.0, "ipo": 1 / (4 * self.config.beta**2)}
        self.value_at_reference = at_reference.get(self.config.loss, math.log(2))

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = feedback.edges.where(~feedback.edges.columns)
        ratios = log_ratios(scores, references["reference"], self.config.reduces_by, self.kind_scale)  # [N, D]
        scaled = self.config.beta * margins(ratios, edges) - edges.margin[:, None]  # [E, D]
        return {"preference": edge_term(self.link(scaled), scores, edges)}

    def link(self, scaled: Tensor) -> Tensor:
        """Return the loss of scaled margins ``z``, elementwise."""
        smoothing = self.config.label_smoothing
        match self.config.loss:
            case "sigmoid":
                return -(1 - smoothing) * F.logsigmoid(scaled) - smoothing * F.logsigmoid(-scaled)
            case "hinge":
                return torch.relu(1 - scaled)
            case "ipo":
                return ((scaled - 0.5) / self.config.beta) ** 2
            case "robust":
                unbiased = -(1 - smoothing) * F.logsigmoid(scaled) + smoothing * F.logsigmoid(-scaled)
                return unbiased / (1 - 2 * smoothing)


class SimPO(Objective):
    """Simple Preference Optimization (Meng et al. 2024, arXiv 2405.14734, eq. 6): no reference model.

    ``-log sigma(beta * (mean log pi(better) - mean log pi(worse)) - gamma - margin)``, means over a response's decisions.
    TRL's CPO trainer with ``loss_type="simpo"``, ``cpo_alpha=0`` computes the same; LLaMA-Factory too. There is no fixed
    value at the reference. On a denoising draw the score has one decision and is no likelihood: the loss then compares
    denoising errors, beta is in the thousands, and the length normalisation does nothing.
    """

    needs = frozenset({"edges"})
    scope: ClassVar = "edge"

    def __init__(self, config: SimPOConfig | None = None) -> None:
        super().__init__()
        self.config = config or SimPOConfig()
        self.kind_scale = scale_per_kind(self.config.kind_scale)

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = feedback.edges.where(~feedback.edges.columns)
        means = log_ratios(scores, None, "mean", self.kind_scale)  # [N, D]
        scaled = self.config.beta * margins(means, edges) - self.config.gamma - edges.margin[:, None]  # [E, D]
        return {"preference": edge_term(-F.logsigmoid(scaled), scores, edges)}
