"""Preference losses that were made for denoising models: MaPO, DSPO, and DPO over prompts.

A draw (time, noise) of a denoiser scores ``-1/2 * mean squared error``, so its error is ``e = -2 * score``. Losses are taken per
draw and averaged afterwards. The formulas read the MEAN error: with ``policy.reduction: sum`` their constants mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor

from polyalign.objectives.base import Edges, FeedbackTensors, Term
from polyalign.objectives.denoising_config import DSPOConfig, MaPOConfig, TDPOConfig
from polyalign.objectives.margins import Configured, columns, edge_term, log_ratios, margins, rows
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.supervised import negative_log_likelihood, wins
from polyalign.policies.base import Scores


class MaPO(Configured[MaPOConfig]):
    """Margin-aware Preference Optimization (Hong et al. 2024, arXiv 2406.06424): no reference model.

    ``mean e(better) - beta * log sigma(steps * (s(e(better)) - s(e(worse))) - margin)`` with the error e of a draw and
    ``s(e) = gamma e / (exp(gamma e) - 1)``, which falls from 1 at e = 0. Only row edges count. The first term is the mean
    over draws of all better responses (each as often as it wins, times edge weight), the second the weighted mean over edges.
    In one draw s is a function of that draw's error; that it stands for a likelihood is the paper's approximation.

    Defaults are those of the authors' code (mapo-t2i/mapo). There is no fixed value at the reference.
    """

    needs = frozenset({"edges"})
    Config = MaPOConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``error`` (weight: draws of better responses) and ``preference`` (weight: sum of edge weights)."""
        edges = rows(feedback, self.config)
        half, draws = negative_log_likelihood(scores, wins(feedback, edges), self.kind_scale)
        fitness = _over_expm1(-2 * self.config.gamma * log_ratios(scores, None, "mean", self.kind_scale))  # [N, D]
        z = self.config.steps * margins(fitness, edges) - edges.margin[:, None]  # [E, D]
        return {
            "error": Term(2 * half, draws),
            "preference": edge_term(-self.config.beta * F.logsigmoid(z), scores, edges),
        }


class DSPO(Configured[DSPOConfig]):
    """Direct Score Preference Optimization (Zhu et al., ICLR 2025): score matching toward the preferred distribution.

    ``mean over latent dimensions of ((p - target) - beta * sigma(-z) * (p - p_ref))^2`` on the better response, p and p_ref
    the predictions of policy and reference, and ``z = gate_beta * (X(better) - X(worse)) - margin`` with X the log-ratio as in
    `DPO`. Its gradient runs through the gate sigma(-z) too, as in the authors' code (huaishengzhu/DSPO, Stable Diffusion 1.5);
    their SDXL branch drops the target and needs a threshold to move away from the reference, and is left out.

    At the reference p = p_ref: the loss is the better response's error, its gradient that error's times
    ``1 - beta sigma(-z)``, and the worse response enters only once the policy has moved. With the printed beta the gate stays
    near 1/2; ``gate_beta`` in the thousands makes it DPO's. sigma is neither convex nor concave: with one draw the gate is
    nominal. There is no fixed value at the reference.

    It reads predictions of both models, so scores cannot come from a cache, and the latents of a micro-batch must have one
    shape.
    """

    needs = frozenset({"reference", "edges", "predictions"})
    wants = reference_wants = frozenset({"predictions"})
    Config = DSPOConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = rows(feedback, self.config)
        ratios = log_ratios(scores, references["reference"], "sum", self.kind_scale)  # [N, D]
        z = (self.config.gate_beta or self.config.beta) * margins(ratios, edges) - edges.margin[:, None]  # [E, D]
        predicted = scores.extras["predictions"][edges.better].flatten(2)  # [E, D, dimensions]
        target = scores.extras["targets"][edges.better].flatten(2)
        frozen = references["reference"].extras["predictions"][edges.better].flatten(2).detach()
        gate = self.config.beta * torch.sigmoid(-z)[..., None]
        losses = (predicted - target - gate * (predicted - frozen)).square().mean(-1)  # [E, D]
        return {"preference": edge_term(losses, scores, edges)}

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        return {"preference": rows(feedback, self.config).weight.sum()}


class TDPO(DPO):
    """DPO over prompts (TDPO of arXiv 2509.25771): one response under the prompt that fits it, and under one that does not.

    DPO's loss on the edges that compare two prompts for one response, which the other pairwise objectives leave out: the
    columns of grids, or records whose candidates share a response. ``instruct_engine`` mixes both kinds. Not the token-level
    DPO of the same initials. What `DPO` says of links and draws holds here; at the reference: ln 2.
    """

    def __init__(self, config: TDPOConfig | None = None) -> None:
        super().__init__(config or TDPOConfig())

    def compared(self, feedback: FeedbackTensors) -> Edges:
        return columns(feedback, self.config)


def _over_expm1(x: Tensor) -> Tensor:
    """Return ``x / (exp(x) - 1)`` elementwise for x >= 0, 1 at x = 0, with gradients at both ends."""
    small = x < 1e-3
    inner = torch.where(small, 1.0, x)  # each branch sees only arguments it can take, since both enter the gradient
    return torch.where(small, 1 - x / 2 + x.square() / 12, inner * torch.exp(-inner) / -torch.expm1(-inner))
