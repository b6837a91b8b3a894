"""One thing read in the light of another: a multilayer perceptron whose layers a condition modulates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ModulatedPerceptron(nn.Module):
    """Inputs ``[P, I]`` and a condition ``[P, C]`` to states ``[P, H]``: the condition scales and shifts each layer's units.

    So words can pick what in a view counts, and an arm's joints turn a direction into commands. Source: FiLM (Perez et al. 2018,
    arXiv 1709.07871), as RT-1 (arXiv 2212.06817) conditions what a robot sees. States are normalised at the end, as a language
    model's are: a noisy choice would not hear smaller ones.
    """

    def __init__(self, inputs: int, condition: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, after) for width, after in pairwise((inputs, *hidden))])
        self.modulations = nn.ModuleList([nn.Linear(condition, 2 * width, bias=False) for width in hidden]) if condition else None
        self.norm = nn.LayerNorm(hidden[-1])
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight, math.sqrt(2), generator=generator)
            nn.init.zeros_(layer.bias)
        for modulation in self.modulations or ():
            nn.init.normal_(modulation.weight, std=0.5, generator=generator)

    def forward(self, inputs: Tensor, condition: Tensor) -> Tensor:
        state = inputs
        for number, layer in enumerate(self.layers):
            state = layer(state)
            if self.modulations is not None:
                scale, shift = self.modulations[number](condition).chunk(2, -1)
                state = state * (1 + scale) + shift
            state = torch.relu(state)
        return self.norm(state)  # type: ignore[no-any-return]
