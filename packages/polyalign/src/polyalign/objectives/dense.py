"""Preferences in time: segments of responses that are labelled good or bad, instead of or beside whole responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors, Term
from polyalign.objectives.margins import edge_term, less_margin
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.refinements import weighted_log_ratios
from polyalign.objectives.refinements_config import DenseDPOConfig, SegmentDPOConfig, TimelineConfig
from polyalign.policies.base import Scores


class Timeline(NamedTuple):
    """Labels of every decision of N samples. ``value`` ``[N, T]``: sum of the values of the segments it lies in, 0 in none.
    ``inside`` ``[N, T]`` bool: whether it lies in one of value other than 0. ``border`` ``[N, T]`` bool: a segment begins
    with it, or has just ended."""

    value: Tensor
    inside: Tensor
    border: Tensor


def timeline(feedback: FeedbackTensors, samples: int, decisions: int, config: TimelineConfig) -> Timeline:
    """Return the labels of N = ``samples`` times T = ``decisions``. A decision belongs to a segment if its middle does.

    Raises `TrainingError` if a segment's unit has no entry in ``decisions_per``.
    """
    segments = feedback.segments
    if missing := sorted(set(segments.unit) - set(config.decisions_per)):
        raise TrainingError(
            f"segments are given in {missing[0]}, and nothing says how many decisions that is; set objective.decisions_per: "
            f"{{{missing[0]}: N}} with N decisions of this policy per unit (25 for a codec of 25 Hz, in seconds)"
        )
    rate = torch.tensor([config.decisions_per[unit] for unit in segments.unit], device=segments.start.device)  # type: ignore[index]
    middle = torch.arange(decisions, device=segments.start.device) + 0.5
    began, ended = middle >= (segments.start * rate)[:, None], middle >= (segments.end * rate)[:, None]  # [S, T]
    within = began & ~ended
    edge = torch.diff(began.int() + ended.int(), dim=-1, prepend=torch.zeros_like(began[:, :1], dtype=torch.int)) > 0
    blank = torch.zeros(samples, decisions, device=segments.start.device)

    def added(rows: Tensor) -> Tensor:
        return blank.index_add(0, segments.sample, rows.to(blank.dtype))

    labelled = segments.value[:, None] != 0
    return Timeline(added(within * segments.value[:, None]), added(within & labelled) > 0, added(edge) > 0)


class DenseDPO(DPO):
    """DenseDPO (Wu et al. 2025, arXiv 2506.03517): one preference per stretch of time instead of one per pair.

    The two responses of a pair run side by side, decision t of one beside decision t of the other. Borders of either one's
    segments cut the time into stretches. In a stretch the response whose label is higher is preferred (no label counts as
    0), be it the worse response of the pair; stretches of equal labels are left out. A pair costs the mean over its stretches
    of DPO's loss of the stretch, each weighted by how far its labels lie apart, and ``X`` summed over its decisions. The
    pair's margin is asked of each. A pair without any labelled stretch is an ordinary pair of DPO.

    Meant for responses that share their timing: the paper makes both videos of a pair by noising and denoising the same
    real one. For texts, whose t-th tokens have nothing to do with each other, take `SegmentDPO`. At the reference: ln 2.
    """

    needs = frozenset({"reference", "edges", "segments"})
    Config = DenseDPOConfig
    config: DenseDPOConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = self.compared(feedback)
        samples, _, decisions = scores.mask.shape
        labels = timeline(feedback, samples, decisions, self.config)
        real = (scores.mask[edges.better] | scores.mask[edges.worse]).any(1)  # [E, T]
        stretch = (labels.border[edges.better] | labels.border[edges.worse]).cumsum(-1)  # [E, T]
        apart = torch.where(real, labels.value[edges.better] - labels.value[edges.worse], 0.0)  # constant within a stretch
        plain = (apart == 0).all(-1, keepdim=True)
        stretch, apart = torch.where(plain, 0, stretch), torch.where(plain, real.to(apart.dtype), apart)
        count = int(stretch.max()) + 1 if stretch.numel() else 1
        first, second = (
            self._per_stretch(scores, references["reference"], index, stretch, count) for index in (edges.better, edges.worse)
        )  # [E, D, K]
        blank = torch.zeros(len(edges), count, device=apart.device)
        difference = blank.scatter_add(1, stretch, apart) / blank.scatter_add(1, stretch, real.to(blank.dtype)).clamp(min=1)
        upside_down = difference[:, None] < 0
        better, worse = torch.where(upside_down, second, first), torch.where(upside_down, first, second)
        losses = self.link(*less_margin(better, worse, edges))  # [E, D, K]
        importance = difference.abs()[:, None]  # [E, 1, K], 0 where a stretch has no decision
        total = importance.sum(-1)
        return {"preference": edge_term((importance * losses).sum(-1) / torch.where(total > 0, total, 1.0), scores, edges)}

    def _per_stretch(self, scores: Scores, reference: Scores, index: Tensor, stretch: Tensor, count: int) -> Tensor:
        """Return scaled rewards of K = ``count`` stretches, ``[E, D, K]``, of one side of the edges."""
        parts = []
        for number in range(count):
            inside = (stretch == number)[:, None]  # [E, 1, T]
            ratios = weighted_log_ratios(scores, reference, index, inside.to(scores.log_probs.dtype), self.kind_scale)
            length = (scores.mask[index] & inside).sum(-1).clamp(min=1)
            parts.append(self.scaled(ratios, length))
        return torch.stack(parts, -1)


class SegmentDPO(DPO):
    """Dense DPO of RLHF-V (Yu et al. 2023, arXiv 2312.00849): corrected segments count ``segment_weight`` times.

    DPO with ``X = sum of w_t x_t / sum of w_t`` over the decisions of a response, ``x_t = log pi - log pi_ref`` and w_t =
    segment_weight inside segments labelled good or bad, 1 elsewhere; ``reduction: sum`` leaves the division out. With
    weight 1, or without segments, it is length-normalised DPO (with sum: DPO). The labels' signs do not matter: which
    response is better is the pair's to say. At the reference: ln 2.
    """

    needs = frozenset({"reference", "edges", "segments"})
    Config = SegmentDPOConfig
    config: SegmentDPOConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = self.compared(feedback)
        samples, _, decisions = scores.mask.shape
        inside = timeline(feedback, samples, decisions, self.config).inside
        weight = torch.where(inside, self.config.segment_weight, 1.0)[:, None]  # [N, 1, T]
        total = torch.where(scores.mask, weight, 0.0).sum(-1)  # [N, D]

        def side(index: Tensor) -> Tensor:
            ratios = weighted_log_ratios(scores, references["reference"], index, weight[index], self.kind_scale)
            return self.scaled(ratios, torch.where(total > 0, total, 1.0)[index])

        loss = self.link(*less_margin(side(edges.better), side(edges.worse), edges))
        return {"preference": edge_term(loss, scores, edges)}
