"""Samplers of denoising models as chains of Gaussian steps, each with its exact density.

Every step of every sampler here is ``x' = state * x + prediction * p(x, timestep) + std * z`` with z standard normal: whatever
the network predicts, the clean latents and the noise are linear in (x, p), and so is the mean of what comes next. Where
``std`` is 0 the step decides nothing; elsewhere it is a decision with log-density ``log N(x'; mean, std^2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.config import SamplerConfig
from polyalign.policies.schedules import Prediction, Schedule
from polyalign.randomness import keyed_generator


@dataclass(frozen=True)
class Grid:
    """The n + 1 noise levels that a sampler visits, from noise to clean; ``timesteps`` are what the network is told at the
    first n. Levels are as in `Schedule`: ``x = signal * clean + noise * eps``."""

    signal: tuple[float, ...]
    noise: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.signal) == len(self.noise) == len(self.timesteps) + 1


@dataclass(frozen=True)
class Step:
    """``x' = state * x + prediction * p(x, timestep) + std * z``. The clean latents are ``clean[0] * x + clean[1] * p``."""

    timestep: float
    state: float
    prediction: float
    std: float
    clean: tuple[float, float]


def grid_of(schedule: Schedule, steps: int) -> Grid:
    """Return levels spread evenly over the schedule, from its noisiest, and the clean level after them."""
    if not 0 < steps <= len(schedule):
        raise ConfigError(f"sampler.steps={steps}, but the schedule has {len(schedule)} levels; use 1 to {len(schedule)}")
    levels = torch.linspace(len(schedule) - 1, 0, steps + 1).round().long()[:-1]
    return Grid(
        signal=(*schedule.signal.double()[levels].tolist(), 1.0),
        noise=(*schedule.noise.double()[levels].tolist(), 0.0),
        timesteps=tuple(schedule.timesteps[levels].tolist()),
    )


def clean_and_noise(kind: Prediction, signal: float, noise: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the clean latents and the noise as (factor of x, factor of the prediction), at one level."""
    if kind == "epsilon":
        return (1 / signal, -noise / signal), (0.0, 1.0)
    if kind == "v_prediction":
        return (signal, -noise), (noise, signal)
    return (1.0, -noise), (1.0, signal)  # flow: p = noise - clean, and signal = 1 - noise


def steps_of(kind: Prediction, grid: Grid, config: SamplerConfig, window: range | None = None) -> tuple[Step, ...]:
    """Return the steps of a sampler on a network that predicts ``kind``; outside ``window`` they are deterministic.

    With noise 0, and for ``ode``, all of them are the deterministic step of DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12),
    which for a flow is Euler's. A step that ends in clean latents is deterministic too: noise added there would stay in
    the response (Flow-GRPO's code does add it; its marginals match the ODE's only without).

    - ``ddim`` (DDPO, arXiv 2305.13301): std ``eta * n'/n * sqrt(1 - s^2/s'^2)``, eq. 16 of DDIM; eta 1 is DDPM.
    - ``cps`` (coefficients-preserving sampling, arXiv 2509.05952): std ``n' sin(eta pi / 2)``.
    - ``sde`` (Flow-GRPO, arXiv 2505.05470, eq. 9): diffusion ``a sqrt(t / (1 - t))``; at t = 1, where that is infinite, 1 - t is
      taken at the next level, as in the published code.
    - ``dance`` (DanceGRPO, arXiv 2505.07818): the same with a constant diffusion a.
    """
    if config.kind in ("sde", "dance") and kind != "flow":
        raise ConfigError(f"sampler.kind={config.kind!r} is for flow models, but this one predicts {kind!r}; use ddim or cps")
    if config.kind == "ddim" and kind == "flow":
        raise ConfigError("sampler.kind='ddim' is for models that predict epsilon or v; this is a flow: use sde, dance or cps")
    steps = []
    for index, timestep in enumerate(grid.timesteps):
        amount = config.noise if window is None or index in window else 0.0
        state, prediction, std = _step(kind, grid, index, config.kind if amount else "ode", amount)
        clean, _ = clean_and_noise(kind, grid.signal[index], grid.noise[index])
        steps.append(Step(timestep, state, prediction, std, clean))
    return tuple(steps)


def _step(kind: Prediction, grid: Grid, index: int, sampler: str, amount: float) -> tuple[float, float, float]:
    """Return (factor of x, factor of the prediction, std)."""
    signal, noise = grid.signal[index], grid.noise[index]
    next_signal, next_noise = grid.signal[index + 1], grid.noise[index + 1]
    if next_noise == 0:
        sampler = "ode"
    if sampler in ("sde", "dance"):
        interval = next_noise - noise  # negative: time runs from noise to clean
        headroom = 1 - noise if noise < 1 else 1 - next_noise
        variance = amount**2 * (noise / headroom if sampler == "sde" else 1.0)  # of the diffusion, per unit of time
        pull = variance / (2 * noise) * interval
        return 1 + pull, interval + pull * (1 - noise), math.sqrt(-variance * interval)
    if sampler == "ddim":
        std = amount * next_noise / noise * math.sqrt(max(0.0, 1 - (signal / next_signal) ** 2))
    elif sampler == "cps":
        std = next_noise * math.sin(amount * math.pi / 2)
    else:
        std = 0.0
    clean, eps = clean_and_noise(kind, signal, noise)
    kept = math.sqrt(max(0.0, next_noise**2 - std**2))
    return next_signal * clean[0] + kept * eps[0], next_signal * clean[1] + kept * eps[1], std


def window_of(config: SamplerConfig, grid: Grid, seed: int) -> range | None:
    """Return the steps that may be stochastic: all (None), or a window of them (MixGRPO, arXiv 2507.21802).

    Without ``window.start`` it is drawn anew for every seed, uniformly over the places where all of it is stochastic. A window
    that moves comes back to the first place after the last.
    """
    if config.window is None:
        return None
    free = len(grid.timesteps) - (grid.noise[-1] == 0)
    if config.window.size > free:
        raise ConfigError(f"sampler.window.size={config.window.size}, but only {free} of the steps can be stochastic; lower it")
    places = free - config.window.size + 1
    start = config.window.start
    if config.window.every is not None:
        start = (start or 0) % places
    elif start is None:
        start = int(torch.randint(places, (), generator=keyed_generator(seed, "window")))
    elif start >= places:
        raise ConfigError(f"sampler.window.start={start} leaves no {config.window.size} stochastic steps; use 0 to {places - 1}")
    return range(start, start + config.window.size)


def log_density(x: Tensor, mean: Tensor, std: Tensor, reduction: str) -> Tensor:
    """Return ``log N(x; mean, std^2)`` ``[M]`` in float32, summed or averaged over the dimensions of ``x`` ``[M, ...]``.

    The mean is what DDPO and Flow-GRPO use: a ratio of such densities is the true ratio's D-th root.
    """
    scale = std.float().reshape(-1, *(1,) * (x.ndim - 1))
    values = -0.5 * ((x.float() - mean.float()) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    values = values.flatten(1)
    return values.sum(1) if reduction == "sum" else values.mean(1)


def coefficients(steps: Sequence[Step]) -> Tensor:
    """Return ``[M, 4]`` float32: state, prediction, std and timestep of each step."""
    return torch.tensor([(step.state, step.prediction, step.std, step.timestep) for step in steps], dtype=torch.float32)
