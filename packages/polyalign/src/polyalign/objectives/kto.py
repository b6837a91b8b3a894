"""KTO: desirable and undesirable responses one by one, against a reference point shared by the whole step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.base import MISMATCH, RESPONSE, FeedbackTensors, Scope, Term, averaged
from polyalign.objectives.config import KTOConfig
from polyalign.objectives.margins import Configured, log_ratios, over_draws, real_draws
from polyalign.policies.base import Scores


class KTO(Configured[KTOConfig]):
    """Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7).

    With ``X = log pi - log pi_ref`` summed over decisions, a sample costs
    ``desirable_weight * (1 - sigma(beta (X - z0)))`` if it is desirable (label +1) and
    ``undesirable_weight * (1 - sigma(beta (z0 - X)))`` if not (label -1). The term divides by the NUMBER of labelled
    samples, as TRL does, not by the sum of the two weights.

    Other utilities (Diffusion-KTO, Li et al. 2024, arXiv 2404.04465) put ``1 - U(x)`` for ``1 - sigma(x)``: ``loss_averse`` has
    ``U(x) = log sigma(x)``, concave, ``risk_seeking`` ``U(x) = -log sigma(-x)``, convex, whose loss has no lower bound. TRL
    has the first only. ``diffusion_kto`` differs in its defaults: z0 over the batch, and beta twice the authors', since
    their log-ratio is a difference of errors and ours of scores, which are half of that.

    ``z0 = max(0, mean X)`` without gradient: over the step's mismatched samples (prompt and response of different
    records; ``kl: mismatch``, the paper) or over its labelled samples themselves (``kl: batch``, Diffusion-KTO,
    arXiv 2404.04465). The mean runs over all micro-batches and processes of one optimiser step, through `statistics`;
    TRL takes it per micro-batch, so that its loss depends on how a step is split.

    Denoising: the link is applied per draw; sigma is neither convex nor concave, so one draw bounds nothing and KTO is
    nominal there, as it is in Diffusion-KTO. loss_averse is convex and bounds the loss at the expected gain from above,
    risk_seeking from below. z0 is one number for all draws.

    At the reference z0 = 0 and each sample costs ``1 - U(0)`` (1/2, 1 + ln 2 or 1 - ln 2) times its weight, if both weights
    are equal; with unequal ones it depends on the mix, so there is no fixed value.
    """

    needs = frozenset({"reference", "labels"})
    scope: Scope = "batch"
    statistic_names: tuple[str, ...] = ("mismatched", "labelled", "mismatched_share")
    Config = KTOConfig

    def __init__(self, config: KTOConfig | None = None) -> None:
        super().__init__(config)
        if self.config.kl == "mismatch":
            self.needs = self.needs | {"mismatch"}
        same = self.config.desirable_weight == self.config.undesirable_weight
        nothing = torch.zeros((), dtype=torch.float64)
        self.value_at_reference = self.config.desirable_weight * self.cost(nothing).item() if same else None

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of losses, number of labelled samples)}``."""
        labelled = _labelled(feedback).nonzero().flatten()
        if statistics is None:
            statistics = averaged(self.statistics(scores, references, feedback))
        ratios = log_ratios(scores, references["reference"], "sum", self.kind_scale)[labelled]  # [L, D]
        desirable = feedback.label[labelled] > 0
        gain = torch.where(desirable, 1.0, -1.0)[:, None] * (ratios - self.reference_point(statistics))
        weight = torch.where(desirable, self.config.desirable_weight, self.config.undesirable_weight)
        losses = over_draws(self.cost(self.config.beta * gain), real_draws(scores)[labelled])
        count = torch.tensor(float(len(labelled)), device=ratios.device)
        return {"preference": Term((weight * losses).sum(), count)}

    def cost(self, gain: Tensor) -> Tensor:
        """Return ``1 - U(gain)`` elementwise, for gains times beta."""
        match self.config.utility:
            case "kahneman_tversky":
                return torch.sigmoid(-gain)  # rather than 1 - sigma(x): it keeps its digits where the loss is small
            case "loss_averse":
                return 1 - F.logsigmoid(gain)
            case "risk_seeking":
                return 1 + F.logsigmoid(-gain)

    def reference_point(self, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return z0, a scalar without gradient, from the step's statistics (already divided)."""
        match self.config.kl:
            case "mismatch":
                mean = statistics["mismatched"]
            case "batch":
                mean = statistics["labelled"]
            case "auto":
                mean = torch.where(statistics["mismatched_share"] > 0, statistics["mismatched"], statistics["labelled"])
        return mean.detach().clamp(min=0)

    def statistics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term | Tensor]:
        """Return the sums behind z0: log-ratios of mismatched and of labelled samples, and how many are mismatched."""
        with torch.no_grad():
            ratios = log_ratios(scores, references["reference"], "sum", self.kind_scale)
            ratios = over_draws(ratios, real_draws(scores))  # [N]
            mismatched, labelled = feedback.role == MISMATCH, _labelled(feedback)
            share = mismatched.to(ratios.dtype)
            return {
                "mismatched": Term(ratios[mismatched].sum(), share.sum()),
                "labelled": Term(ratios[labelled].sum(), labelled.to(ratios.dtype).sum()),
                "mismatched_share": Term(share.sum(), torch.ones_like(share).sum()),
            }


def _labelled(feedback: FeedbackTensors) -> Tensor:
    return (feedback.label != 0) & (feedback.role == RESPONSE)
