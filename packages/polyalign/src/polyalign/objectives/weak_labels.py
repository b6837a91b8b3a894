"""Weak-to-strong: preferences with soft labels of a weaker model, which the policy may come to trust itself against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import Edges, FeedbackTensors, Objective, Scope, Term, averaged
from polyalign.objectives.links import smoothed_sigmoid
from polyalign.objectives.margins import edge_term, margins, real_draws, rows
from polyalign.objectives.optimal_transport import nearest
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.ratings import rating_differences
from polyalign.objectives.weak_labels_config import WeakLogconfConfig, WeakProductConfig, WeakXentConfig
from polyalign.policies.base import Scores


class WeakXent(Objective):
    """Cross-entropy with a weak model's soft preferences (Burns et al. 2023, arXiv 2312.09390), on DPO's margin.

    With ``z`` DPO's scaled margin of an edge (see `DPO`; the policy's probability of the preference is sigma(z)) and ``q``
    the weak model's probability that the better response is better, an edge costs ``-q log sigma(z) - (1 - q) log sigma(-z)``:
    cDPO with a smoothing ``1 - q`` of its own for each edge, least at ``z = log(q / (1 - q))``.

    ``q = sigma(label_scale * l)``: by configuration l is the strength of the comparison (as a weak Bradley-Terry model gives
    it: the difference of its rewards), which then is no weight, all edges weighing 1; or the difference of the two ratings,
    and the strength stays a weight. Ratings may contradict the edge: q is below 1/2 then. A strength of 0 is no preference
    and left out. Raises `TrainingError` where ratings are to be read and are missing.

    At the reference ln 2, whatever the labels. Denoising: convex in z and applied per draw, as DPO; the minimum is nominal.
    """

    needs = frozenset({"reference", "edges"})
    value_at_reference = math.log(2)

    def __init__(self, config: WeakXentConfig | None = None) -> None:
        super().__init__()
        self.config = config or WeakXentConfig()
        self.needs = self.needs | self.config.needs
        self.dpo = DPO(self.config.as_dpo())  # its rewards are ours

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges, log_odds = self.labelled(feedback)
        z = self.scaled_margins(scores, references, edges)  # [E, D]
        target = self.target(z.detach(), log_odds[:, None].to(z.dtype), statistics or {}, (scores, edges))
        return {"preference": edge_term(smoothed_sigmoid(z, 1 - target), scores, edges)}

    def target(self, z: Tensor, log_odds: Tensor, statistics: Mapping[str, Tensor], drawn: tuple[Scores, Edges]) -> Tensor:
        """Return the probability that each preference is to have, broadcastable to ``z`` ``[E, D]`` (without gradient).

        ``log_odds`` ``[E, 1]``: the weak model's. ``drawn``: the scores and edges that z comes from.
        """
        return torch.sigmoid(log_odds)

    def labelled(self, feedback: FeedbackTensors) -> tuple[Edges, Tensor]:
        """Return the row edges, with what they weigh beside their labels, and the weak model's log-odds ``[E]``."""
        edges = rows(feedback)
        if self.config.labels == "strength":
            weight = (edges.weight > 0).to(edges.weight.dtype)
            return replace(edges, weight=weight), self.config.label_scale * edges.weight
        difference, known = rating_differences(edges, feedback, {}) if len(edges) else (edges.weight, edges.weight > 0)
        if missing := int((~known & (edges.weight > 0)).sum()):
            raise TrainingError(
                f"{missing} of {len(edges)} preferences have a response without rating, and objective.labels is ratings; "
                "rate both sides, or take labels: strength"
            )
        return edges, self.config.label_scale * difference

    def scaled_margins(self, scores: Scores, references: Mapping[str, Scores], edges: Edges) -> Tensor:
        """Return ``z`` ``[E, D]``, the edges' own margins taken off."""
        return margins(self.dpo.scaled_rewards(scores, references["reference"]), edges) - edges.margin[:, None]


class WeakProduct(WeakXent):
    """`WeakXent` towards the normalised product of both opinions (as in the code of arXiv 2312.09390), held fixed.

    The target's log-odds are ``label_power * log(q / (1 - q)) + policy_power * z``. With a policy_power of 1 it is always
    beyond the policy, on the weak model's side: margins grow without end. Below 1 they settle at
    ``label_power * log(q / (1 - q)) / (1 - policy_power)``, sharper than the weak labels; 0 is `WeakXent`.
    """

    config: WeakProductConfig

    def __init__(self, config: WeakProductConfig | None = None) -> None:
        super().__init__(config or WeakProductConfig())

    def target(self, z: Tensor, log_odds: Tensor, statistics: Mapping[str, Tensor], drawn: tuple[Scores, Edges]) -> Tensor:
        return torch.sigmoid(self.config.label_power * log_odds + self.config.policy_power * z)


class WeakLogconf(WeakXent):
    """`WeakXent` with an auxiliary confidence loss (Burns et al. 2023, arXiv 2312.09390).

    The target is ``(1 - c) q + c h``, with h the policy's own hard label, held fixed: 1 for the step's preferences of the
    largest margins, 0 for the others, cut where the step's labels keep their balance, ``sum of h = sum of q`` by weight. A
    weak model that is calibrated errs in a share ``1 - mean q`` of its preferences: these the policy may overrule. Margins
    that are equal at the cut share what is left of it (all of them do at the reference, where the released code flips every
    label), so that the balance is exact. c grows from 0 to ``confidence`` over ``warmup_steps`` in equal steps; the released
    code grows to half of it and then jumps.

    The cut is that of the whole step, over all micro-batches and processes, through `statistics`. The number of steps is a
    buffer, saved and resumed.
    """

    scope: Scope = "batch"
    statistic_names: tuple[str, ...] = ("values",)
    config: WeakLogconfConfig
    windows: Tensor

    def __init__(self, config: WeakLogconfConfig | None = None) -> None:
        super().__init__(config or WeakLogconfConfig())
        self.register_buffer("windows", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        known = statistics or averaged(self.statistics(scores, references, feedback))
        return super().forward(scores, references, feedback, known)

    def target(self, z: Tensor, log_odds: Tensor, statistics: Mapping[str, Tensor], drawn: tuple[Scores, Edges]) -> Tensor:
        pool, mass, label = statistics["values"][statistics["values"][:, 1] > 0].unbind(-1)
        own = hardened(z.flatten(), pool, mass, (mass * label).sum()).view(z.shape)
        grown = min(1.0, int(self.windows) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        return torch.lerp(torch.sigmoid(log_odds).expand_as(z), own, self.config.confidence * grown)

    def statistics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term | Tensor]:
        """Return what the cut is made from, ``[E * D, 3]``: margin, mass, weak label. Draws that are padding have no mass."""
        with torch.no_grad():
            edges, log_odds = self.labelled(feedback)
            z, real = self.scaled_margins(scores, references, edges), real_draws(scores)
            drawn = (real[edges.better] | real[edges.worse]).to(z.dtype)  # [E, D]
            mass = edges.weight[:, None] * drawn / drawn.sum(-1, keepdim=True).clamp(min=1)
            label = torch.sigmoid(log_odds)[:, None].expand_as(z)
            return {"values": torch.stack([part.to(z.dtype).flatten() for part in (z, mass, label)], -1)}

    def observe(self, statistics: Mapping[str, Tensor]) -> None:
        self.windows += 1


def hardened(own: Tensor, pool: Tensor, mass: Tensor, positive: Tensor) -> Tensor:
    """Return hard labels for ``own`` ``[A]`` (some values of ``pool`` ``[M]``): 1 for the largest values, as many as have the
    mass ``positive`` together, 0 for the others. Values equal at the cut share what is left, each getting the same fraction."""
    if not len(pool):
        return torch.zeros_like(own)
    values, order = pool.sort()
    ends = torch.nn.functional.pad(mass[order].double().cumsum(0), (1, 0))  # [M + 1]
    found = nearest(own, values)
    low, high = ends[torch.searchsorted(values, found)], ends[torch.searchsorted(values, found, right=True)]
    left = positive.double() - (ends[-1] - high)  # of the positive mass, after all that is larger
    return (left / (high - low)).clamp(0, 1).to(own.dtype)
