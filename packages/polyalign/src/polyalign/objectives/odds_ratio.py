"""ORPO: supervised fine-tuning on the better response, and an odds-ratio penalty against the worse one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Term
from polyalign.objectives.config import ORPOConfig
from polyalign.objectives.margins import Configured, edge_term, margins, rows
from polyalign.objectives.supervised import negative_log_likelihood, wins
from polyalign.policies.base import Scores


class ORPO(Configured[ORPOConfig]):
    """Odds Ratio Preference Optimization (Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7): no reference model.

    ``NLL(better) + lambda * -log sigma(log odds(better) - log odds(worse) - margin)`` with ``odds = p / (1 - p)`` and
    ``log p`` the mean log-probability per decision. Only row edges count. The first term is the mean over decisions of
    all better responses (each as often as it wins, times edge weight), the second the weighted mean over edges.

    Differences: TRL 1.16 takes the first term over prompt AND response (a policy here scores responses only), the second
    term is the same. LLaMA-Factory averages the first term per response before averaging over the batch.

    A denoising draw's score is at most 0, so its odds exist, but ``exp(score)`` is no probability: the odds are nominal.
    A density can exceed 1 and then has no odds, so policies over continuous actions are not supported.
    There is no fixed value at the reference.
    """

    needs = frozenset({"edges"})
    Config = ORPOConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``nll`` (weight: decisions of better responses) and ``odds_ratio`` (weight: sum of edge weights)."""
        edges = rows(feedback, self.config)
        odds = log_odds(scores.reduced("mean", self.kind_scale))  # [N, D]
        penalty = -F.logsigmoid(margins(odds, edges) - edges.margin[:, None])  # [E, D]
        return {
            "nll": negative_log_likelihood(scores, wins(feedback, edges), self.kind_scale),
            "odds_ratio": edge_term(self.config.odds_weight * penalty, scores, edges),
        }


def log_odds(log_p: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` elementwise from ``log_p <= 0``; p = 1 counts as the largest number below it."""
    below = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return below - log1mexp(below)


def log1mexp(x: Tensor) -> Tensor:
    """Return ``log(1 - exp(x))`` elementwise for ``x < 0``, accurate at both ends (Maechler 2012, eq. 7)."""
    near_zero = x > -math.log(2)
    # Each branch sees only arguments it can take, since the unused one still enters the gradient.
    small = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    large = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, small, large)
