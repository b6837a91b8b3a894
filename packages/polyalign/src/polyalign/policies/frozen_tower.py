"""A media tower that does not train: it runs without gradients, and once for policy and reference together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class FrozenTower:
    """Takes over the ``forward`` of a module without trainable weights.

    Calls run under ``no_grad``, so nothing of the tower is kept or recomputed for the backward pass, also with gradient
    checkpointing. Inside `shared`, what the tower returned is kept in the given list; with a list that is already full,
    its entries are returned in the same order instead of running the tower.
    """

    def __init__(self, module: nn.Module) -> None:
        self.inner = module.forward
        self.kept: list[Any] | None = None
        self.replayed: Iterator[Any] | None = None
        module.forward = self.forward

    def forward(self, *arguments: Any, **named: Any) -> Any:
        if self.replayed is not None:
            return copy.copy(next(self.replayed))
        with torch.no_grad():
            output = self.inner(*arguments, **named)
        if self.kept is not None:
            self.kept.append(copy.copy(output))  # models write into the output they are given
        return output

    @contextmanager
    def shared(self, kept: list[Any]) -> Iterator[None]:
        """Fill ``kept`` if it is empty, else replay it. The calls inside must be the same each time."""
        self.kept, self.replayed = (None, iter(kept)) if kept else (kept, None)
        try:
            yield
        finally:
            self.kept = self.replayed = None


def trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
