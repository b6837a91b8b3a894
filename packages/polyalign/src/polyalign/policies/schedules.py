"""Noise schedules: how a clean latent is noised at level t, and what a network is asked to predict there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyalign.errors import ConfigError

Prediction = Literal["epsilon", "v_prediction", "flow"]
Timesteps = Literal["uniform", "logit_normal"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """S noise levels, from clean to noise: ``y_t = signal[i] * y0 + noise[i] * eps``.

    ``signal``, ``noise``, ``timesteps``: ``[S]`` float32; ``timesteps[i]`` is what the network is told at level i.
    The target is ``eps`` (epsilon), ``signal * eps - noise * y0`` (v_prediction, Salimans & Ho 2022) or
    ``eps - y0`` (flow: the velocity of the straight path, Liu et al. 2022, as in SD3).
    """

    prediction: Prediction
    signal: Tensor
    noise: Tensor
    timesteps: Tensor

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v_prediction", "flow"):
            raise ConfigError(f"prediction is {self.prediction!r}; expected 'epsilon', 'v_prediction' or 'flow'")
        assert self.signal.shape == self.noise.shape == self.timesteps.shape and self.signal.ndim == 1

    @classmethod
    def variance_preserving(cls, alphas_cumprod: Tensor, prediction: Prediction = "epsilon") -> Schedule:
        """Return the schedule of a DDPM-like model: ``signal = sqrt(alphas_cumprod)``, timesteps 0 to S - 1."""
        alphas = alphas_cumprod.detach().to("cpu", torch.float32)
        return cls(prediction, alphas.sqrt(), (1 - alphas).sqrt(), torch.arange(len(alphas), dtype=torch.float32))

    @classmethod
    def flow(cls, steps: int = 1000, shift: float = 1.0) -> Schedule:
        """Return the straight-path schedule: ``noise = sigma``, ``signal = 1 - sigma``, timesteps ``steps * sigma``.

        ``sigma = shift * s / (1 + (shift - 1) * s)`` for ``s = 1/steps ... 1`` (Esser et al. 2024, equation 23).
        """
        level = torch.arange(1, steps + 1, dtype=torch.float32) / steps
        sigma = shift * level / (1 + (shift - 1) * level)
        return cls("flow", 1 - sigma, sigma, sigma * steps)

    @classmethod
    def cosine(cls, steps: int = 1000) -> Schedule:
        """Return the schedule of v-prediction on a quarter circle, ``signal = cos(pi t / 2)``, ``noise = sin(pi t / 2)``, with
        timesteps ``t = 1/steps ... 1`` (Stable Audio, arXiv 2407.14358; v as in Salimans & Ho 2022)."""
        level = torch.arange(1, steps + 1, dtype=torch.float32) / steps
        return cls("v_prediction", (level * math.pi / 2).cos(), (level * math.pi / 2).sin(), level)

    def __len__(self) -> int:
        return len(self.signal)

    def draw_level(self, distribution: Timesteps, generator: torch.Generator) -> int:
        """Return one level: uniform, or ``sigmoid(z)`` of the way to noise with z standard normal (logit_normal, SD3)."""
        if distribution == "uniform":
            return int(torch.randint(len(self), (), generator=generator))
        if distribution == "logit_normal":
            share = 1 / (1 + math.exp(-float(torch.randn((), generator=generator))))
            return min(int(share * len(self)), len(self) - 1)
        raise ConfigError(f"timesteps is {distribution!r}; expected 'uniform' or 'logit_normal'")

    def add_noise(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return the noised latents; ``level`` ``[...]`` long covers the leading dimensions of ``clean`` and ``noise``."""
        return _at(self.signal, level, noise) * clean + _at(self.noise, level, noise) * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return what the network should predict, in the shape of ``noise``."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - clean
        return _at(self.signal, level, noise) * noise - _at(self.noise, level, noise) * clean

    def clean_scale(self, level: Tensor) -> Tensor:
        """Return by how much an error of the prediction counts in the clean latents that it implies, in the shape of ``level``.

        The clean latents are ``(y_t - noise * p) / signal`` (epsilon), ``signal * y_t - noise * p`` (v_prediction) and
        ``y_t - noise * p`` (flow).
        """
        noise, signal = self.noise.to(level.device)[level], self.signal.to(level.device)[level]
        return noise / signal if self.prediction == "epsilon" else noise

    def timestep(self, level: Tensor) -> Tensor:
        """Return the float32 timesteps the network is told, in the shape of ``level``."""
        return self.timesteps.to(level.device)[level]

    def description(self) -> str:
        """Return text that changes whenever the schedule does; it enters fingerprints."""
        values = torch.stack([self.signal, self.noise, self.timesteps]).double()
        return f"{self.prediction}/{len(self)}/{values.sum(1).tolist()}/{values.square().sum(1).tolist()}"


def _at(table: Tensor, level: Tensor, like: Tensor) -> Tensor:
    """Look ``level`` up and add trailing dimensions, so that the result broadcasts against ``like``."""
    values = table.to(level.device)[level]
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
