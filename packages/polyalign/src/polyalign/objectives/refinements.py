"""DPO refined: pairs weighted by how likely they are, tails that count less, and a beta that grows with the reward margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import LongTensor, Tensor

from polyalign.objectives.base import Edges, FeedbackTensors, Term
from polyalign.objectives.margins import edge_term, lengths, less_margin, log_ratios
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.refinements_config import LDDPOConfig, MMDPOConfig, WPOConfig
from polyalign.policies.base import Kind, Scores


class WPO(DPO):
    """Weighted Preference Optimization (Zhou et al. 2024, arXiv 2406.11827, eq. 2): pairs count as far as the policy likes them.

    DPO's loss of a pair, as configured, times ``w(better) * w(worse)`` without gradient, with

        w(y) = exp(mean over decisions of (log pi(y_t) - log sum over v of pi(v)^2))      alignment: sampled
        w(y) = exp(mean over decisions of log pi(y_t))                                      alignment: none

    The sum over the vocabulary is the probability that a token sampled from the policy has on average, so that what the
    policy writes itself weighs about 1. Off-policy pairs weigh less, and count less as the policy moves away from them.
    Divided by the number of pairs (by edge weight), not by the weights: the same as TRL 1.16 with ``use_weighting``.

    There is no fixed value at the reference: it is ln 2 times the mean weight there. Denoising: exp(score) is no
    probability; a density of continuous actions is one per unit of volume. Neither is supported.
    """

    Config = WPOConfig
    config: WPOConfig

    def __init__(self, config: WPOConfig | None = None) -> None:
        super().__init__(config)
        self.value_at_reference = None
        if self.config.alignment == "sampled":
            self.wants = frozenset({"log_sum_squares"})
            self.needs = self.needs | self.wants

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * w * w * loss, sum of weights)}`` over the row edges."""
        edges = self.compared(feedback)
        likely = self.likelihood(scores.detach())  # [N, D]
        loss = self.link(*self.rewards(scores, references["reference"], edges))
        return {"preference": edge_term(likely[edges.better] * likely[edges.worse] * loss, scores, edges)}

    def likelihood(self, scores: Scores) -> Tensor:
        """Return w of every sample and draw, ``[N, D]``."""
        log_probs = scores.log_probs
        if self.config.alignment == "sampled":
            log_probs = log_probs - scores.extras["log_sum_squares"][:, None]  # [N, 1, T]
        return replace(scores, log_probs=log_probs).reduced("mean").exp()

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        return {"preference": self.compared(feedback).weight.sum()}


class LDDPO(DPO):
    """Length-Desensitized DPO (Liu et al. 2024, arXiv 2409.06411): what one response says beyond the other's length counts less.

    DPO with ``X = sum over t <= l of x_t + ld_alpha * sum over t > l of x_t`` for l the length of the shorter of the two
    responses and ``x_t = log pi - log pi_ref`` of decision t. ld_alpha 1 is DPO. With ``reduction: mean`` X is divided by
    the whole length.

    As in TRL 1.16 the tail is scaled in policy and reference alike; LLaMA-Factory and ms-swift scale the policy's only,
    whose loss at the reference then is not ln 2. Denoising: a draw is one decision, and this is DPO.
    """

    Config = LDDPOConfig
    config: LDDPOConfig

    def rewards(self, scores: Scores, reference: Scores, edges: Edges) -> tuple[Tensor, Tensor]:
        place = scores.mask.cumsum(-1)  # [N, D, T], counting from 1
        shorter = torch.minimum(scores.mask.sum(-1)[edges.better], scores.mask.sum(-1)[edges.worse])  # [E, D]

        def side(index: LongTensor) -> Tensor:
            weight = torch.where(place[index] > shorter[..., None], self.config.ld_alpha, 1.0)  # [E, D, T]
            ratios = weighted_log_ratios(scores, reference, index, weight, self.kind_scale)
            return self.scaled(ratios, lengths(scores)[index])

        return less_margin(side(edges.better), side(edges.worse), edges)


class MMDPO(DPO):
    """MM-DPO (Zhang et al. 2025, MM-RLHF, arXiv 2502.10391): the clearer the preference, the larger its beta.

    DPO with ``beta * (1 + growth * (1 - exp(-margin)))`` for each pair. The margin is ``margin_scale`` (the paper's k) times
    the difference of the pair's ratings, its strength, or what the data gives, as ``margin_from`` says; it is not
    subtracted. A margin of 0 (also: ratings that contradict the preference, or none) is DPO, growth 0 too.

    The paper takes the margin from a reward model's scores. The released code has a switch on by default that replaces
    this by one beta for the whole batch, from the batch's own implicit rewards; that one is not here. At the reference: ln 2.
    """

    Config = MMDPOConfig
    config: MMDPOConfig

    def rewards(self, scores: Scores, reference: Scores, edges: Edges) -> tuple[Tensor, Tensor]:
        scaled = self.scaled_rewards(scores, reference)  # [N, D]
        factor = 1 - self.config.growth * torch.expm1(-edges.margin)[:, None]  # [E, 1]
        return factor * scaled[edges.better], factor * scaled[edges.worse]


def weighted_log_ratios(
    scores: Scores, reference: Scores, index: Tensor, weight: Tensor, kind_scale: Mapping[Kind, float]
) -> Tensor:
    """Return the sum over decisions of ``weight * (log pi - log pi_ref)``, ``[E, D]``, of the samples ``index`` ``[E]``.

    ``weight`` is ``[E, D, T]`` or ``[E, 1, T]``.
    """

    def part(whole: Scores) -> Scores:
        log_probs = torch.where(whole.mask, whole.log_probs, 0.0)[index] * weight
        return Scores(log_probs, whole.mask[index], whole.kind[index])  # type: ignore[arg-type]

    return log_ratios(part(scores), part(reference), "sum", kind_scale)
