"""The network of a diffusion policy: convolutions over a chunk of actions, modulated by what was seen and by the noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

GROUPS = 8
FASTEST = 1000.0  # radians over the whole schedule


class ChunkDenoiser(nn.Module):
    """Noised chunks ``[B, H, A]``, how noisy they are ``[B]`` on [0, 1] and what was seen ``[B, S]`` to predictions
    ``[B, H, A]``.

    Source: the one-dimensional convolutional network of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137, section IV-A): FiLM
    in every residual block. It has no down-sampling here, since chunks are short, and what was seen passes two layers before
    it modulates.
    """

    def __init__(self, actions: int, seen: int, channels: int, blocks: int) -> None:
        super().__init__()
        width = 2 * channels
        self.register_buffer("rates", torch.logspace(0, math.log10(FASTEST), channels // 2), persistent=False)
        self.condition = nn.Sequential(nn.Linear(seen + channels, width), nn.Mish(), nn.Linear(width, width), nn.Mish())
        self.enter = nn.Conv1d(actions, channels, 3, padding=1)
        self.blocks = nn.ModuleList([ModulatedBlock(channels, width) for _ in range(blocks)])
        self.leave = nn.Conv1d(channels, actions, 1)

    def forward(self, noised: Tensor, share: Tensor, seen: Tensor) -> Tensor:
        phase = share[:, None] * self.rates  # [B, channels / 2]
        condition = self.condition(torch.cat([seen, phase.sin(), phase.cos()], -1))
        state = self.enter(noised.transpose(1, 2))  # [B, channels, H]
        for block in self.blocks:
            state = block(state, condition)
        return self.leave(state).transpose(1, 2)  # type: ignore[no-any-return]


class ModulatedBlock(nn.Module):
    """Two convolutions beside a bypass; the condition scales and shifts the channels between them."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv1d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList([nn.GroupNorm(GROUPS, channels) for _ in range(2)])
        self.modulation = nn.Linear(condition, 2 * channels)

    def forward(self, state: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[..., None].chunk(2, 1)
        inner = nn.functional.mish(self.norms[0](self.first(state)))
        inner = inner * (1 + scale) + shift
        return state + nn.functional.mish(self.norms[1](self.second(inner)))  # type: ignore[no-any-return]
