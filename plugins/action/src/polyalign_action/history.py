"""A causal transformer over the last observations: the body of a policy that remembers them.

Every step is read from its own window, so its scores know neither the batch nor what padding is in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def windows_of(states: Tensor, length: int) -> Tensor:
    """Return what is seen at each step of states ``[N, T, F]``: the last L = ``length`` of them, oldest first,
    ``[N, T, L, F + 1]``. The last column is 1 where there is a state, and 0, as the state is, before an episode begins."""
    known = torch.cat([states, torch.ones_like(states[..., :1])], -1)
    return nn.functional.pad(known, (0, 0, length - 1, 0)).unfold(1, length, 1).transpose(-1, -2)


class Recent:
    """The windows of episodes that are being played, each a state longer with every step."""

    def __init__(self, episodes: int, length: int, size: int, device: torch.device) -> None:
        self.windows = torch.zeros(episodes, length, size + 1, device=device)

    def push(self, states: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return the windows ``[n, length, F + 1]`` of these episodes, which now end with ``states`` ``[n, F]``."""
        which = list(numbers)
        newest = torch.cat([states, torch.ones_like(states[:, :1])], -1)[:, None]
        self.windows[which] = torch.cat([self.windows[which][:, 1:], newest], 1)
        return self.windows[which]


class HistoryTransformer(nn.Module):
    """Windows ``[P, L, F + 1]``, as `windows_of` makes them, to features of the latest state ``[P, W]``. Places count from it."""

    def __init__(
        self,
        inputs: int,
        width: int,
        layers: int,
        heads: int,
        length: int,
        activation: type[nn.Module],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.read = nn.Linear(inputs, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width, generator=generator))
        self.blocks = nn.ModuleList([CausalBlock(width, heads, activation) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        for layer in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.orthogonal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, windows: Tensor) -> Tensor:
        states, known = windows[..., :-1], windows[..., -1] > 0.5
        every = torch.ones(windows.shape[-2], windows.shape[-2], dtype=torch.bool, device=windows.device)
        allowed = every.tril() & (known[:, None] | torch.eye(len(every), dtype=torch.bool, device=windows.device))  # [P, L, L]
        features = self.read(states) + self.places
        for block in self.blocks:
            features = block(features, allowed[:, None])
        return self.norm(features[:, -1])  # type: ignore[no-any-return]


class CausalBlock(nn.Module):
    """Attention, then two layers; both normalise what they read and add to it."""

    def __init__(self, width: int, heads: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.attend, self.mix = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width))

    def forward(self, features: Tensor, allowed: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.attend(self.norms[0](features)).chunk(3, -1)
        )  # [P, heads, L, W / heads]
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        features = features + self.mix(attended.transpose(1, 2).flatten(2))
        return features + self.think(self.norms[1](features))  # type: ignore[no-any-return]
