"""Contrastive preference learning: which of two stretches of behaviour has more advantage, told by log-probabilities alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Term
from polyalign.objectives.config import CPLConfig, CPLKLConfig
from polyalign.objectives.margins import Configured, edge_term, rows
from polyalign.policies.base import Scores


class CPL(Configured[CPLConfig]):
    """Contrastive Preference Learning (Hejna et al. 2023, arXiv 2310.13639, eq. 5, and eq. 8 with its bias).

    ``-log sigma(A(better) - bias * A(worse) - margin)``, where ``A = alpha * sum over t of discount^t log pi(a_t | s_t)`` is the
    regret-based view of preferences: in maximum-entropy control the advantage of an action is alpha times its log-probability.
    bias < 1 asks for more than a difference: at equal A the loss falls when both are likely, so that the policy stays where the
    data is. With bias 1 and discount 1 it is CPO's first term. No reward model, no reinforcement learning and, for ``cpl``, no
    reference: the authors start from behaviour cloning of all segments (`SFT`) and reset the optimiser.

    ``cpl_kl`` measures log pi against the reference (their CPL-KL; it starts at ln 2 whatever the bias): with bias 1 and
    discount 1 it is DPO over trajectories, which is GRAPE's trajectory-wise preference loss (Zhang et al. 2024,
    arXiv 2411.19309, eq. 3).

    Decisions count their places among the real ones of a response. Denoising: the score of a draw has one decision.
    """

    needs = frozenset({"edges"})
    Config = CPLConfig

    def __init__(self, config: CPLConfig | None = None) -> None:
        super().__init__(config)
        self.against_reference = isinstance(self.config, CPLKLConfig)
        self.needs = self.needs | ({"reference"} if self.against_reference else set())
        self.value_at_reference = math.log(2) if self.against_reference else None

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = rows(feedback, self.config)
        advantage = self.advantages(scores)  # [N, D]
        if self.against_reference:
            advantage = advantage - self.advantages(references["reference"]).detach()
        apart = advantage[edges.better] - self.config.bias * advantage[edges.worse] - edges.margin[:, None]
        return {"preference": edge_term(-F.logsigmoid(apart), scores, edges)}

    def advantages(self, scores: Scores) -> Tensor:
        """Return ``A`` of every sample and draw, ``[N, D]``."""
        step = scores.mask.cumsum(-1) - 1  # [N, D, T]
        discounts = torch.tensor(self.config.discount, device=step.device) ** step.clamp(min=0)
        return self.config.alpha * (discounts * scores.scaled(self.kind_scale)).sum(-1)
