"""Imitation through a codebook: the likelihood of the actions shown, and, if asked, an even use of the codes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Term
from polyalign.objectives.supervised import SFT, worth_imitating
from polyalign.policies.base import Scores
from polyalign_action.uniact_config import UniActObjectiveConfig


class UniActCloning(SFT):
    """``sft`` and ``entropy_coef`` times the divergence of each choice of a code from the even one, sum of q log(K q).

    UniAct's code computes that term (with 5e-4), logs it and leaves it out of its loss; so does the default here, 0. Its masked
    Huber loss is the negative log-likelihood of `huber_head.HuberHead`; what it masks, padding, is no decision here.
    """

    needs = wants = frozenset({"codes"})

    config: UniActObjectiveConfig

    def __init__(self, config: UniActObjectiveConfig | None = None) -> None:
        super().__init__(config or UniActObjectiveConfig())

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return the term of `SFT` and, if weighted, ``code_use``."""
        terms = super().forward(scores, references, feedback)
        if self.config.entropy_coef:
            divergence = self._divergence(scores, feedback)
            terms["code_use"] = Term(self.config.entropy_coef * divergence.sum, divergence.weight)
        return terms

    def metrics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term]:
        """Return ``code_divergence``, nats: 0 where every code is as likely, log K where one is chosen for certain."""
        divergence = self._divergence(scores, feedback)
        return {"code_divergence": Term(divergence.sum.detach(), divergence.weight)}

    def weights(self, scores_mask: Tensor, kind: Tensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        counted = (worth_imitating(feedback)[:, None, None] * scores_mask).sum().to(torch.float32)
        return {"nll": counted} | ({"code_use": counted} if self.config.entropy_coef else {})

    def _divergence(self, scores: Scores, feedback: FeedbackTensors) -> Term:
        codes = scores.extras["codes"]  # [N, T, K]
        counted = worth_imitating(feedback)[:, None] & scores.mask[:, 0]  # [N, T]
        divergence = (codes.exp() * codes).sum(-1) + math.log(codes.shape[-1])
        return Term(divergence[counted].sum(), counted.sum().to(divergence.dtype))
