"""The continuous family's action heads: what a network's outputs say about the next action. A head knows no environment.

Actions are drawn from noise that is made beforehand, so that an episode's randomness depends on its own key alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ActionHead(nn.Module, ABC):
    """``size``: how many outputs of the network it reads, the last dimension of ``outputs`` below."""

    size: int

    @abstractmethod
    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability (density, for real-valued actions) of each action: ``[P]`` for P decisions."""

    @abstractmethod
    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy in nats (differential, for real-valued actions) before each action, ``[P]``."""

    @abstractmethod
    def noise(self, steps: int, generator: torch.Generator) -> Tensor:
        """Return what ``steps`` draws of one episode need of randomness, ``[steps, ...]``."""

    @abstractmethod
    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return the actions that the noise picks, a row each."""

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """Return the likeliest actions."""


class CategoricalHead(ActionHead):
    """One of ``count`` actions; ``outputs`` ``[P, count]`` are logits, ``actions`` ``[P]`` indices from 0."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.size = count

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return torch.log_softmax(outputs.float(), -1).gather(-1, actions.long()[:, None])[:, 0]

    def entropy(self, outputs: Tensor) -> Tensor:
        log_probs = torch.log_softmax(outputs.float(), -1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def noise(self, steps: int, generator: torch.Generator) -> Tensor:
        return torch.rand(steps, generator=generator, dtype=torch.float64)

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Invert the cumulative distribution at ``noise`` ``[P]`` on [0, 1)."""
        cumulative = torch.softmax(outputs.double(), -1).cumsum(-1)
        point = noise[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, point, right=True)[:, 0].clamp(max=self.size - 1)

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)


class GaussianHead(ActionHead):
    """Independent normal actions; ``outputs`` ``[P, A]`` are means, ``log_std`` ``[A]`` is learned and the same in every state.

    No squashing: an environment with bounds clips what it is given, and what is scored is the action before clipping.
    """

    def __init__(self, initial_std: Sequence[float]) -> None:
        super().__init__()
        self.size = len(initial_std)
        self.log_std = nn.Parameter(torch.tensor(initial_std).log())

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        standard = (actions - outputs.float()) * (-self.log_std).exp()
        return -(0.5 * standard**2 + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(len(outputs))

    def noise(self, steps: int, generator: torch.Generator) -> Tensor:
        return torch.randn(steps, self.size, generator=generator)

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return outputs + self.log_std.exp() * noise

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs


def network(sizes: Sequence[int], activation: type[nn.Module], generator: torch.Generator, gain: float) -> nn.Sequential:
    """Return a multilayer perceptron with orthogonal weights and zero biases; ``gain`` scales the last layer.

    Source of the initialisation: Andrychowicz et al. 2020, arXiv 2006.05990 (small last layer of the actor).
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        layer = nn.Linear(inputs, outputs)
        last = number == len(sizes) - 2
        nn.init.orthogonal_(layer.weight, gain if last else math.sqrt(2), generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, activation()]
    return nn.Sequential(*layers)
