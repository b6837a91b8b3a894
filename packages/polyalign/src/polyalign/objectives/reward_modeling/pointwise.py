"""A reward model from ratings: no comparison needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyalign.objectives.base import FeedbackTensors, Term
from polyalign.objectives.reward_modeling.aspects import Aspects
from polyalign.objectives.reward_modeling.base import Attachment
from polyalign.objectives.reward_modeling_config import PointwiseConfig
from polyalign.policies.base import Scores


class Pointwise(Aspects):
    """Ratings, rescaled to [0, 1], by squared error (``mse``; the LAION aesthetic predictor, VideoScore arXiv 2406.15252) or as
    soft labels of a binary cross-entropy (``bce``; outcome reward models, Cobbe et al. 2021, arXiv 2110.14168).

    A column per rated aspect, each a term of its own. Several ratings of one response count one by one. The reward is on the
    scale of the ratings, [0, 1], for either loss.
    """

    needs = frozenset({"hidden", "ratings"})
    with_bias = True

    def __init__(self, config: PointwiseConfig | None = None) -> None:
        super().__init__(config or PointwiseConfig())
        self.config: PointwiseConfig

    def build(self, attachment: Attachment) -> None:
        super().build(attachment)
        if self.config.loss == "mse":  # start in the middle of the scale, where bce starts too
            nn.init.constant_(self.head[-1].bias, 0.5)  # type: ignore[arg-type]

    def in_data(self, attachment: Attachment) -> Sequence[str]:
        return attachment.rated

    def scaled(self, columns: Tensor) -> Tensor:
        return torch.sigmoid(columns) if self.config.loss == "bce" else columns

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return a term per aspect, ``rating/ASPECT``: (sum of losses, number of ratings)."""
        ratings = feedback.ratings
        values = self.columns(scores)[ratings.sample]  # [R, A]
        target = ratings.value.to(values.dtype)[:, None].expand_as(values)
        if self.config.loss == "bce":
            losses = F.binary_cross_entropy_with_logits(values, target, reduction="none")
        else:
            losses = (values - target) ** 2
        return self.terms("rating", losses, ratings.aspect, torch.ones_like(ratings.value, dtype=values.dtype))

    def probabilities(self, margins: Tensor) -> None:
        """Ratings say nothing of how often one response is preferred."""
        return None
