"""The DPO family: a link on the rewards of two responses to one prompt, each measured against a reference.

An edge's ``weight`` multiplies its loss and counts as so many pairs. An edge's ``margin`` m asks for a scaled margin of m:
half of it is taken off the better reward and half added to the worse one, after beta.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from polyalign.objectives.base import Edges, FeedbackTensors, Term
from polyalign.objectives.config import DPOConfig, MarginConfig, PairwiseConfig
from polyalign.objectives.divergences import implicit_reward
from polyalign.objectives.links import LINKS
from polyalign.objectives.margins import Configured, edge_term, lengths, log_ratios, rows, sides
from polyalign.policies.base import Scores


class DPO(Configured[PairwiseConfig]):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) and its relatives; only row edges count.

    With ``X = log pi - log pi_ref`` summed over decisions, ``g`` the reward of the divergence (g(X) = X unless set, see
    `divergences`), ``b = beta g(X_better) - m / 2``, ``w = beta g(X_worse) + m / 2``, ``z = b - w`` and smoothing e, the loss
    of one draw is, by configuration class (`links` holds the code):

    - ``dpo``: ``-(1 - e) log sigma(z) - e log sigma(-z)``; e > 0 is cDPO (Mitchell 2023). TRL 1.16 ignores
      label_smoothing here; LLaMA-Factory, ms-swift and OpenRLHF smooth as we do. ``f_dpo``: with divergence js by default
      (arXiv 2309.16240).
    - ``sigmoid_norm`` (LN-DPO, arXiv 2407.15229): the same on means over decisions, g(X) / length.
    - ``hinge``: ``max(0, 1 - z)`` (SLiC, arXiv 2305.10425, on the DPO margin).
    - ``ipo``: ``((z - 1/2) / beta)^2``, that is ``(d - margin / beta - 1 / (2 beta))^2`` (arXiv 2310.12036, eq. 17, beta is
      its tau), on means over decisions as in TRL and LLaMA-Factory; ``reduction: sum`` is the paper's letter and OpenRLHF's.
    - ``robust``: ``(-(1 - e) log sigma(z) + e log sigma(-z)) / (1 - 2e)`` (Chowdhury et al. 2024, arXiv 2403.00409),
      unbiased if a share e of the labels is flipped. May be negative.
    - ``exo_pair`` (arXiv 2402.00856, eq. 16): ``sigma(z) log(sigma(z) / (1 - e)) + sigma(-z) log(sigma(-z) / e)``, a reverse
      KL that is 0 at ``z = log((1 - e) / e)``.
    - ``nca_pair`` (arXiv 2402.05369): ``-log sigma(b) - 1/2 log sigma(-b) - 1/2 log sigma(-w)``: holds the better reward up.
    - ``sppo_hard`` (arXiv 2405.00675, eq. 4.7 with P = 1 and 0): ``((b - 1/2) / beta)^2 + ((w + 1/2) / beta)^2``.
    - ``apo_zero`` (arXiv 2408.06266, eq. 7): ``1 - sigma(b) + sigma(w)``. ``apo_down`` (eq. 8): ``sigma(b) + 1 - sigma(z)``,
      for better responses that are still worse than the policy's own.
    - ``discopop`` (arXiv 2406.08414, eq. 5): ``sigma(-z/tau) * -log sigma(z) + sigma(z/tau) * exp(-z)``. It is not
      monotone: at z = 0 its slope is ``-3/4 + (1 - ln 2) / (4 tau)``, positive for tau < (1 - ln 2) / 3 = 0.102. With the
      paper's tau 0.05 a policy that starts at the reference first has to climb over a bump near z = 0.1, and pairs that
      stay left of it gain from LOWERING their margin.

    TRL 1.16 has the same formulas; it offers divergences for the same links, and divides g(X) by the length as we do.

    Denoising: a draw's score is ``-1/2 * mean squared error``, hence ``z = -beta/2 * (model_diff - ref_diff)``, which is
    Diffusion-DPO (arXiv 2311.12908) and Flow-DPO with the same beta. The link is applied to every draw and draws are
    averaged after it. `links` says which of them are nominal then; so is every divergence but reverse_kl, since the mean of
    g(X) over draws is not g of the mean. A draw is one decision: reduction changes nothing.

    At the reference the loss is the link at b = w = 0 (edges without margin): ln 2 for dpo, sigmoid_norm and robust, 1 for
    hinge, apo_zero and apo_down, ``1 / (4 beta^2)`` for ipo, ``1 / (2 beta^2)`` for sppo_hard, 2 ln 2 for nca_pair,
    ``-ln 2 - ln(e (1 - e)) / 2`` for exo_pair, ``(1 + ln 2) / 2`` for discopop.
    """

    needs = frozenset({"reference", "edges"})
    Config: ClassVar[type[PairwiseConfig]] = DPOConfig

    def __init__(self, config: PairwiseConfig | None = None) -> None:
        super().__init__(config)
        nothing = torch.zeros((), dtype=torch.float64)
        self.value_at_reference = self.link(nothing, nothing).item()

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = self.compared(feedback)
        better, worse = self.rewards(scores, references["reference"], edges)
        return {"preference": edge_term(self.link(better, worse), scores, edges)}

    def compared(self, feedback: FeedbackTensors) -> Edges:
        """Return the edges that the loss is over, with the margins and weights that the configuration gives them."""
        return rows(feedback, self.config)

    def rewards(self, scores: Scores, reference: Scores, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return (better, worse): scaled rewards less half the margin, ``[E, D]`` each."""
        return sides(self.scaled_rewards(scores, reference), edges)

    def scaled_rewards(self, scores: Scores, reference: Scores) -> Tensor:
        """Return ``beta g(X)`` of every sample and draw, ``[N, D]``, over its length with ``reduction: mean``."""
        return self.scaled(log_ratios(scores, reference, "sum", self.kind_scale), lengths(scores))

    def scaled(self, log_ratio: Tensor, length: Tensor) -> Tensor:
        """Return ``beta g(X)`` elementwise for summed log-ratios X, over ``length`` with ``reduction: mean``."""
        if isinstance(self.config, MarginConfig):
            log_ratio = implicit_reward(log_ratio, self.config.divergence, self.config.alpha)
        return self.config.beta * (log_ratio / length if self.config.reduction == "mean" else log_ratio)

    def link(self, better: Tensor, worse: Tensor) -> Tensor:
        """Return the loss of scaled rewards, elementwise."""
        return LINKS[self.config.link](better, worse, self.config)
