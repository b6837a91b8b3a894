"""From scores to one number per edge: log-ratio per sample and draw, margin per edge, and draws averaged after the link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from polyalign.objectives.base import Edges, FeedbackTensors, Objective, Term
from polyalign.objectives.config import EdgeConfig, KindName, ObjectiveConfig
from polyalign.objectives.ratings import refined
from polyalign.policies.base import Kind, Scores


def scale_per_kind(kind_scale: Mapping[KindName, float]) -> dict[Kind, float]:
    """Return the configuration's ``kind_scale`` keyed by `Kind`, as `Scores.reduced` takes it."""
    return {Kind[name.upper()]: factor for name, factor in kind_scale.items()}


Settings = TypeVar("Settings", bound=ObjectiveConfig)


class Configured(Objective, Generic[Settings]):
    """An objective with settings of class ``Config``, at their defaults unless given; they may add to its needs."""

    Config: ClassVar[type[Any]]

    def __init__(self, config: Settings | None = None) -> None:
        super().__init__()
        self.config: Settings = self.Config() if config is None else config
        self.needs = self.needs | self.config.needs
        self.kind_scale = scale_per_kind(self.config.kind_scale)


def log_ratios(
    scores: Scores, reference: Scores | None, reduction: str = "sum", kind_scale: Mapping[Kind, float] | None = None
) -> Tensor:
    """Return ``log pi - log pi_ref`` per sample and draw, ``[N, D]``; without a reference ``log pi`` itself."""
    policy = scores.reduced(reduction, kind_scale)
    if reference is None:
        return policy
    frozen = reference.reduced(reduction, kind_scale).detach()
    # Broadcasting over draws would silently pair a draw with another draw's reference.
    assert policy.shape == frozen.shape, f"scores are {tuple(policy.shape)}, reference scores {tuple(frozen.shape)}"
    return policy - frozen


def rows(feedback: FeedbackTensors, config: EdgeConfig | None = None) -> Edges:
    """Return the edges between two responses to one prompt; the others compare two prompts for one response.

    ``config`` is the objective's own: margins and weights are then what it makes of ratings, strengths and aspects.
    """
    edges = feedback.edges.where(~feedback.edges.columns)
    return edges if config is None else refined(edges, feedback, config)


def columns(feedback: FeedbackTensors, config: EdgeConfig) -> Edges:
    """Return the edges that compare two prompts for one response, refined as in `rows`."""
    return refined(feedback.edges.where(feedback.edges.columns), feedback, config)


def margins(values: Tensor, edges: Edges) -> Tensor:
    """Return ``values[better] - values[worse]``, ``[E, D]``, of values ``[N, D]``."""
    return values[edges.better] - values[edges.worse]


def sides(values: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Return (better, worse), ``[E, D]`` each, of scaled rewards ``[N, D]``, half of the edge's margin taken off either side:
    their difference then is the scaled margin minus what the edge asks for."""
    return less_margin(values[edges.better], values[edges.worse], edges)


def less_margin(better: Tensor, worse: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Return the two sides of edges, ``[E, ...]`` each, half of the edge's margin taken off either."""
    half = edges.margin.view(-1, *[1] * (better.ndim - 1)) / 2
    return better - half, worse + half


def lengths(scores: Scores) -> Tensor:
    """Return how many decisions each draw has, ``[N, D]``, at least 1."""
    return scores.mask.sum(-1).clamp(min=1)


def real_draws(scores: Scores) -> Tensor:
    """Return which draws of which samples hold at least one decision, ``[N, D]`` bool. The others are padding."""
    return scores.mask.any(-1)


def over_draws(values: Tensor, real: Tensor) -> Tensor:
    """Return the mean over real draws: ``[..., D]`` to ``[...]``; 0 where no draw is real."""
    return torch.where(real, values, 0.0).sum(-1) / real.sum(-1).clamp(min=1)


def edge_losses(per_draw: Tensor, scores: Scores, edges: Edges) -> Tensor:
    """Return one loss per edge, ``[E]``, from the loss of every draw, ``[E, D]``. Draws are averaged here, after the link.

    Both sides of an edge share their draws; a side without any decision (an empty response) has log-probability 0 in each.
    """
    real = real_draws(scores)
    return over_draws(per_draw, real[edges.better] | real[edges.worse])


def edge_term(per_draw: Tensor, scores: Scores, edges: Edges) -> Term:
    """Return the weighted sum over edges of per-draw losses ``[E, D]``, with the sum of edge weights as its weight."""
    losses = edge_losses(per_draw, scores, edges)
    return Term((edges.weight * losses).sum(), edges.weight.sum())
