"""Good and bad responses one by one, without a reference point shared by the step; or bad ones alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyalign.objectives.base import RESPONSE, FeedbackTensors, Scope, Term
from polyalign.objectives.kto import KTO
from polyalign.objectives.margins import Configured
from polyalign.objectives.odds_ratio import log1mexp
from polyalign.objectives.unpaired_config import APOZeroUnpairedConfig, UnlikelihoodConfig
from polyalign.policies.base import Scores


class APOZeroUnpaired(KTO):
    """Anchored Preference Optimization on unpaired responses (after D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7).

    With ``X = log pi - log pi_ref`` summed over decisions a desirable response costs ``desirable_weight * (1 - sigma(beta
    X))``, an undesirable one ``undesirable_weight * sigma(beta X)``: `KTO` with its reference point at 0, so that nothing of
    the rest of the step matters and no mismatched samples are scored. TRL 1.16: KTO trainer, ``loss_type="apo_zero_unpaired"``;
    as there, the term divides by the NUMBER of labelled samples.

    Denoising: nominal, as KTO. At the reference each sample costs half its weight.
    """

    scope: Scope = "edge"
    statistic_names: tuple[str, ...] = ()

    def __init__(self, config: APOZeroUnpairedConfig | None = None) -> None:
        super().__init__(config or APOZeroUnpairedConfig())  # type: ignore[arg-type]

    def reference_point(self, statistics: Mapping[str, Tensor]) -> Tensor:
        return torch.zeros(())

    def statistics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term | Tensor]:
        return {}


class Unlikelihood(Configured[UnlikelihoodConfig]):
    """Unlikelihood training (Welleck et al. 2019, arXiv 1908.04319, eq. 5 with every token of a bad response as candidate).

    ``-log(1 - p)`` of each decision of the undesirable responses (label -1), averaged over those decisions; responses with
    another label or none cost nothing. ``log(1 - p)`` is exact for small and for large p; a p that rounds to 1 counts as the
    largest number below it. No reference. For likelihood on good responses beside it: ``weighted_sum`` with ``sft``.

    The gradient of log p is ``p / (1 - p)``: decisions that are already unlikely are left alone, so that the policy is not
    pushed on without end, as by negated likelihood.

    A denoising draw scores ``-1/2 * mean squared error``, and ``p = exp(score)`` is no probability: what is pushed away are
    draws that are denoised well, with a force that fades once the error is of the order of 1. The number is nominal. A
    density of continuous actions can exceed 1 and then has no unlikelihood: not supported. There is no fixed value at the
    reference.
    """

    needs = frozenset({"labels"})
    Config = UnlikelihoodConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"unlikelihood": (sum over decisions, number of decisions)}``."""
        bad = (feedback.label < 0) & (feedback.role == RESPONSE)  # [N]
        counted = scores.mask & bad[:, None, None]
        log_p = torch.where(counted, scores.scaled(self.kind_scale), -1.0)  # [N, D, T]
        cost = -log1mexp(log_p.clamp(max=-torch.finfo(log_p.dtype).eps))
        return {"unlikelihood": Term(torch.where(counted, cost, 0.0).sum(), counted.sum().to(cost.dtype))}
