"""What ratings say: a number per sample, and margins and weights of edges. Ratings are on [0, 1], whatever their scale was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from polyalign.objectives.base import Edges, FeedbackTensors
from polyalign.objectives.config import EdgeConfig


def by_aspect(feedback: FeedbackTensors) -> tuple[tuple[str, ...], Tensor]:
    """Return the aspects that are rated in this batch and each sample's mean rating on them, ``[N, A]``; NaN: not rated."""
    ratings, count = feedback.ratings, len(feedback.role)
    aspects = tuple(sorted(set(ratings.aspect)))
    place = torch.tensor([aspects.index(aspect) for aspect in ratings.aspect], dtype=torch.long, device=ratings.value.device)
    cell = ratings.sample * len(aspects) + place
    totals = torch.zeros(count * len(aspects), device=ratings.value.device)
    given = totals.index_add(0, cell, torch.ones_like(ratings.value))
    return aspects, (totals.index_add(0, cell, ratings.value) / given).view(count, len(aspects))


def weighted_mean(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the last dimension of the values that are not NaN, and where there are any of weight > 0."""
    counted = torch.where(values.isnan(), 0.0, weights)
    total = counted.sum(-1)
    return (counted * values.nan_to_num()).sum(-1) / torch.where(total > 0, total, 1.0), total > 0


def aspect_factors(aspects: tuple[str, ...], weights: Mapping[str, float], like: Tensor) -> Tensor:
    """Return the weight of each aspect, 1 if it is not named, as a tensor on ``like``'s device."""
    return torch.tensor([weights.get(aspect, 1.0) for aspect in aspects], dtype=torch.float32, device=like.device)


def rating_differences(edges: Edges, feedback: FeedbackTensors, aspect_weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Return how much higher the better side is rated, in [-1, 1], and which edges that is known of, ``[E]`` each.

    On the edge's own aspect, if both sides are rated on it; else the mean over all aspects that both are rated on, by
    ``aspect_weights``. Several annotators are averaged first.
    """
    aspects, values = by_aspect(feedback)
    difference = values[edges.better] - values[edges.worse]  # [E, A]
    own = torch.tensor([[aspect == name for name in aspects] for aspect in edges.aspect], device=difference.device)
    own = own.view(len(edges), len(aspects)).bool() & ~difference.isnan()
    known_own = own.any(-1)
    overall, known = weighted_mean(difference, aspect_factors(aspects, aspect_weights, difference))
    return torch.where(known_own, torch.where(own, difference, 0.0).sum(-1), overall), known_own | known


def refined(edges: Edges, feedback: FeedbackTensors, config: EdgeConfig) -> Edges:
    """Return the edges with the margins and weights that the configuration makes of ratings, strengths and aspects."""
    edges = replace(edges, aspect=edges.aspect or ("overall",) * len(edges))
    weight, margin = edges.weight, edges.margin
    if "ratings" in (config.margin_from, config.weight_from) and len(edges):
        difference, known = rating_differences(edges, feedback, config.aspect_weights)
        wider = difference.clamp(min=0)  # ratings that contradict a preference ask for nothing
        if config.margin_from == "ratings":
            margin = torch.where(known, config.margin_scale * wider, margin)
        if config.weight_from == "ratings":
            weight = weight * torch.where(known, wider, 1.0)
    if config.margin_from == "strength":
        margin, weight = config.margin_scale * edges.weight, (edges.weight > 0).to(edges.weight.dtype)
    if config.aspect_weights:
        weight = weight * aspect_factors(edges.aspect, config.aspect_weights, weight)
    return replace(edges, weight=weight, margin=margin)
