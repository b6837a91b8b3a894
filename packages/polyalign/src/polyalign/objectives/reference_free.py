"""SimPO, AlphaPO and CPO: pairwise losses on the policy's own log-probabilities, without a reference model."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Term
from polyalign.objectives.config import AlphaPOConfig, CPOConfig, SimPOConfig
from polyalign.objectives.divergences import power
from polyalign.objectives.margins import Configured, edge_term, log_ratios, margins, rows
from polyalign.objectives.supervised import negative_log_likelihood, wins
from polyalign.policies.base import Scores


class SimPO(Configured[SimPOConfig]):
    """Simple Preference Optimization (Meng et al. 2024, arXiv 2405.14734, eq. 6), and AlphaPO (arXiv 2501.03884).

    ``-log sigma(beta * (r(better) - r(worse)) - gamma - margin)``; with ``log p`` the mean log-probability over a response's
    decisions, SimPO's reward is ``r = log p``, AlphaPO's ``r = (1 - p^-alpha) / alpha``. alpha > 0 stops paying for likely
    winners and punishes unlikely ones more; alpha -> 0 is SimPO. ``p^-alpha`` is cut off at exp(40), where the gradient is 0.
    Only row edges count.

    TRL's CPO trainer computes both (``loss_type="simpo"`` or ``"alphapo"``, ``cpo_alpha=0``), with ``simpo_gamma`` in the same
    units; LLaMA-Factory has SimPO. TRL's alpha is 0 by default, ours is the paper's 0.25 for Mistral.

    There is no fixed value at the reference. On a denoising draw the score has one decision and is no likelihood: the loss
    then compares denoising errors, beta is in the thousands, the length normalisation does nothing and alpha is nominal.
    """

    needs = frozenset({"edges"})
    Config = SimPOConfig

    def __init__(self, config: SimPOConfig | None = None) -> None:
        super().__init__(config)
        self.alpha = self.config.alpha if isinstance(self.config, AlphaPOConfig) else 0.0

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = rows(feedback, self.config)
        rewards = power(log_ratios(scores, None, "mean", self.kind_scale), self.alpha)  # [N, D]
        scaled = self.config.beta * margins(rewards, edges) - self.config.gamma - edges.margin[:, None]  # [E, D]
        return {"preference": edge_term(-F.logsigmoid(scaled), scores, edges)}


class CPO(Configured[CPOConfig]):
    """Contrastive Preference Optimization (Xu et al. 2024, arXiv 2401.08417, eq. 3).

    ``-log sigma(beta * (log pi(better) - log pi(worse)) - margin) + nll_weight * NLL(better)``, log-probabilities summed over
    decisions. Only row edges count. The first term is the weighted mean over edges, the second the mean over decisions of
    all better responses (each as often as it wins, times edge weight), as in `ORPO`.

    TRL 1.16's CPO trainer (experimental) computes the same with ``loss_type="sigmoid"``; nll_weight is its cpo_alpha.

    There is no fixed value at the reference. Denoising: as for SimPO, the loss compares errors, and the second term is 1/2
    of the mean squared error of better responses.
    """

    needs = frozenset({"edges"})
    Config = CPOConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``preference`` (weight: sum of edge weights) and ``nll`` (weight: decisions of better responses)."""
        edges = rows(feedback, self.config)
        sums = log_ratios(scores, None, "sum", self.kind_scale)  # [N, D]
        scaled = self.config.beta * margins(sums, edges) - edges.margin[:, None]  # [E, D]
        total, decisions = negative_log_likelihood(scores, wins(feedback, edges), self.kind_scale)
        return {
            "preference": edge_term(-F.logsigmoid(scaled), scores, edges),
            "nll": Term(self.config.nll_weight * total, decisions),
        }
