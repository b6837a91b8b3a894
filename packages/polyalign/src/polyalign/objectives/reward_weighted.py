"""Reward-weighted regression: imitate every response, the better rated the more."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyalign.objectives.base import RESPONSE, FeedbackTensors, Term
from polyalign.objectives.denoising_config import RWRConfig
from polyalign.objectives.margins import Configured
from polyalign.objectives.ratings import aspect_factors, by_aspect, weighted_mean
from polyalign.objectives.supervised import negative_log_likelihood
from polyalign.policies.base import Scores


class RWR(Configured[RWRConfig]):
    """Reward-weighted regression (Peters & Schaal 2007; on flow models Flow-RWR, Liu et al. 2025, arXiv 2501.13918).

    ``sum of w(r) * -log pi(y_t) / sum of w(r)`` over the decisions of all rated responses: the best policy under a KL
    penalty to the data's, with ``w(r) = exp(r / temperature)``, learnt by maximum likelihood. Ratings r are on [0, 1] and
    averaged over annotators, then over aspects by ``aspect_weights``. ``linear``: w(r) = r. ``lift`` (LiFT, Wang et al. 2024,
    arXiv 2412.04814): each aspect's rating is worth 0.05, 0.2 or 0.9 at 0 (bad), 1/2 (normal) and 1 (good), linear between,
    and w is their mean. Responses without a rating do not count.

    The sum of weights divides, so that a constant added to all rewards changes nothing and weights alone do not change the
    step size; the papers divide by the number of responses. On a denoising draw the loss is half the weighted mean squared
    error (the papers' constants over t are constant here); it is linear in scores, so draws cost nothing but variance.
    There is no fixed value at the reference.
    """

    needs = frozenset({"ratings"})
    Config = RWRConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"nll": (weighted sum of negative log-probabilities, weighted number of decisions)}``."""
        return {"nll": negative_log_likelihood(scores, self.response_weights(feedback), self.kind_scale)}

    def response_weights(self, feedback: FeedbackTensors) -> Tensor:
        """Return w of every sample, ``[N]``; 0 without a rating."""
        aspects, ratings = by_aspect(feedback)  # [N, A]
        if self.config.weighting == "lift":
            ratings = torch.where(ratings < 0.5, 0.05 + 0.3 * ratings, 1.4 * ratings - 0.5)
        mean, known = weighted_mean(ratings, aspect_factors(aspects, self.config.aspect_weights, ratings))
        weight = torch.exp(mean / self.config.temperature) if self.config.weighting == "exponential" else mean
        return torch.where(known & (feedback.role == RESPONSE), weight, 0.0)
