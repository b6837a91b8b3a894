"""Features of samples from plain tensors, and reward models attached to their widths, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from polyalign.objectives.reward_modeling.base import Attachment, RewardModel
from polyalign.policies.base import Scores
from polyalign.records.samples import Edge, Example, Sample

Model = TypeVar("Model", bound=RewardModel)


def features_of(hidden: Tensor, **extras: Tensor) -> Scores:
    """Scores without decisions whose ``hidden`` is ``[N, H]``; other extras as they are given."""
    count = len(hidden)
    mask = torch.zeros(count, 1, 0, dtype=torch.bool)
    return Scores(
        torch.zeros(count, 1, 0, dtype=hidden.dtype), mask, torch.zeros(count, 0, dtype=torch.long), {"hidden": hidden, **extras}
    )


def attached(
    model: Model,
    width: int,
    annotators: Sequence[str] = ("",),
    compared: Sequence[str] = ("overall",),
    rated: Sequence[str] = ("overall",),
) -> Model:
    """The model with its head built, in float64."""
    sizes = dict.fromkeys(sorted(model.wants), width)
    model.load_attachment(Attachment(sizes, tuple(annotators), tuple(compared), tuple(rated)))
    return model.double()


def compared(count: int, edges: Sequence[Edge], name: str = "r", **more: object) -> Example:
    samples = tuple(Sample(f"{name}/{i}", (), (), name) for i in range(count))
    return Example(name, samples, edges=tuple(edges), **more)  # type: ignore[arg-type]


@torch.no_grad()
def randomised(model: Model, seed: int = 0, scale: float = 0.5) -> Model:
    """The model with every parameter drawn anew: heads start at 0, where much looks right."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model
