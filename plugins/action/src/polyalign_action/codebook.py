"""A codebook of universal actions: what to do as a mixture of few learned vectors, whoever does it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Codes = Literal["soft", "straight_through", "hard", "none"]


class GumbelCodebook(nn.Module):
    """States ``[P, H]`` to universal actions ``[P, D]`` by way of ``count`` codes.

    ``soft``: a softmax over codes at the temperature, as UniAct's code trains; ``straight_through``: the likeliest code alone,
    with the gradient of the softmax; ``hard``: the likeliest code alone, without a gradient. ``none`` is no codebook, for
    comparison: the projected state itself, squashed, through a linear map of the same shape.

    The temperature falls in a straight line as training goes on and is saved with the weights. Source: UniAct (Zheng et al.
    2025, arXiv 2501.10105), `GumbelVQ` of its code.
    """

    def __init__(
        self, inputs: int, count: int, size: int, mode: Codes, temperatures: tuple[float, float], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.mode, self.temperatures = mode, temperatures
        self.project = nn.Linear(inputs, count)
        nn.init.xavier_uniform_(self.project.weight, generator=generator)
        nn.init.zeros_(self.project.bias)
        std = 0.2 * (128 / size) ** 0.5  # vectors as long as UniAct's, whatever their size: heads would not hear shorter ones
        self.codes = nn.Parameter(std * torch.randn(count, size, generator=generator))
        self.register_buffer("temperature", torch.tensor(temperatures[0]))
        self.temperature: Tensor

    def anneal(self, done: float) -> None:
        """Set the temperature for the share ``done`` of training."""
        first, last = self.temperatures
        self.temperature.fill_(last + (first - last) * (1 - done))

    def forward(self, states: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (universal actions ``[P, D]``, log-probabilities of the codes ``[P, K]`` without noise or temperature).

        ``noise`` ``[P, K]``: Gumbel noise on the logits; None: none. ``hard`` ignores it.
        """
        logits = self.project(states).float()
        log_probs = torch.log_softmax(logits, -1)
        if self.mode == "none":
            return torch.tanh(logits) @ self.codes, log_probs
        likeliest = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        if self.mode == "hard":
            return (likeliest @ self.codes).detach(), log_probs
        noisy = logits if noise is None else logits + noise
        weights = torch.softmax(noisy / self.temperature, -1)
        if self.mode == "straight_through":
            picked = nn.functional.one_hot(noisy.argmax(-1), logits.shape[-1]).to(logits.dtype)
            weights = picked + weights - weights.detach()
        return weights @ self.codes, log_probs


def gumbel(steps: int, count: int, generator: torch.Generator) -> Tensor:
    """Return standard Gumbel noise ``[steps, count]``."""
    uniform = torch.rand(steps, count, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return -torch.log(-torch.log(uniform)).float()
