"""Samplers as chains of Gaussian steps: against scipy, the papers' differential equations and a flow with closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import scipy.stats
import torch
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.config import SamplerConfig, WindowConfig
from polyalign.policies.samplers import Grid, grid_of, log_density, steps_of, window_of
from polyalign.policies.schedules import Schedule

FLOW = Schedule.flow(1000)
PRESERVING = Schedule.variance_preserving(torch.linspace(0.9999, 0.005, 1000))


def flow_grid(steps: int) -> Grid:
    noise = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    return Grid(tuple(1 - level for level in noise), tuple(noise), tuple(noise[:-1]))


def test_density_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mean = torch.randn(2, 3, 2, 5, generator=generator).unbind()
    std = torch.tensor([0.1, 1.0, 7.0])
    expected = torch.tensor(scipy.stats.norm.logpdf(x.flatten(1).double(), mean.flatten(1).double(), std.double()[:, None]))
    torch.testing.assert_close(log_density(x, mean, std, "sum").double(), expected.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_density(x, mean, std, "mean").double(), expected.mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "a"), [("sde", 0.7), ("dance", 0.3)])
def test_flow_steps_are_euler_maruyama_of_the_papers_sde(kind: str, a: float) -> None:
    """dx = [v + g^2 / (2t) (x + (1 - t) v)] dt + g dw (Flow-GRPO, eq. 8), with g = a sqrt(t / (1 - t)) or g = a."""
    grid = flow_grid(10)
    steps = steps_of("flow", grid, SamplerConfig(kind=kind, noise_level=a))
    x, v = 0.3, -1.7
    for number, (step, (t, following)) in enumerate(zip(steps, pairwise(grid.noise), strict=True)):
        interval = following - t
        g = a if kind == "dance" else a * math.sqrt(t / (1 - (t if number else following)))  # 1 - t = 0 at the first
        drift = v + g**2 / (2 * t) * (x + (1 - t) * v)
        if following == 0:
            drift, g = v, 0.0  # the last step goes straight to the clean latents
        assert step.state * x + step.prediction * v == pytest.approx(x + drift * interval, abs=1e-12)
        assert step.std == pytest.approx(g * math.sqrt(-interval), abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "kind"),
    [(p, k) for p in ("epsilon", "v_prediction") for k in ("ddim", "cps")] + [("flow", k) for k in ("sde", "dance", "cps")],
)
def test_without_noise_every_sampler_is_the_ode(prediction: str, kind: str) -> None:
    grid = grid_of(FLOW if prediction == "flow" else PRESERVING, 7)
    silent = steps_of(prediction, grid, SamplerConfig(kind=kind, noise_level=0.0))
    assert silent == steps_of(prediction, grid, SamplerConfig(kind="ode"))
    assert not any(step.std for step in silent)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_a_step_keeps_the_levels_of_the_next(prediction: str) -> None:
    """Given the true prediction, x' is signal' * clean + noise' * (unit noise): its variance over z and the old noise adds up."""
    schedule = FLOW if prediction == "flow" else PRESERVING
    grid = grid_of(schedule, 9)
    clean, eps = 1.3, 1.0
    for kind in ("ode", "cps", *(("ddim",) if prediction != "flow" else ())):
        for index, step in enumerate(steps_of(prediction, grid, SamplerConfig(kind=kind))):
            signal, noise = grid.signal[index], grid.noise[index]

            def mean(eps: float, step=step, signal=signal, noise=noise) -> float:
                p = {"epsilon": eps, "v_prediction": signal * eps - noise * clean, "flow": eps - clean}[prediction]
                return step.state * (signal * clean + noise * eps) + step.prediction * p

            of_clean, of_noise = mean(0.0), mean(eps) - mean(0.0)
            assert of_clean == pytest.approx(grid.signal[index + 1] * clean, rel=1e-5, abs=1e-6)
            assert math.hypot(of_noise, step.std) == pytest.approx(grid.noise[index + 1], rel=1e-4, abs=1e-6)
            p = {"epsilon": eps, "v_prediction": signal * eps - noise * clean, "flow": eps - clean}[prediction]
            assert step.clean[0] * (signal * clean + noise * eps) + step.clean[1] * p == pytest.approx(clean, rel=1e-4)


def gaussian_velocity(x: Tensor, t: float, mean: float, std: float) -> Tensor:
    """E[noise - clean | x_t = x] for clean ~ N(mean, std^2) and x_t = (1 - t) clean + t noise, by Gaussian conditioning."""
    variance = (1 - t) ** 2 * std**2 + t**2
    slope = (t - (1 - t) * std**2) / variance
    return -mean + slope * (x - (1 - t) * mean)


@pytest.mark.parametrize(("kind", "a"), [("ode", 0.0), ("sde", 0.7), ("sde", 0.3), ("dance", 0.5), ("cps", 0.02)])
def test_marginals_of_the_sde_are_those_of_the_flow(kind: str, a: float) -> None:
    """40,000 one-dimensional paths of 400 steps: mean and deviation at three times and at the end, as in closed form.

    Standard errors are std / 200 for the mean and std / 283 for the deviation; allowed are 4 of them plus 1 % for the steps.
    """
    mean, std, count = 0.8, 0.4, 40_000
    grid = flow_grid(400)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, generator=generator, dtype=torch.float64)
    for number, step in enumerate(steps_of("flow", grid, SamplerConfig(kind=kind, noise_level=a))):
        x = step.state * x + step.prediction * gaussian_velocity(x, step.timestep, mean, std)
        if step.std:
            x = x + step.std * torch.randn(count, generator=generator, dtype=torch.float64)
        t = grid.noise[number + 1]
        if number + 1 in (100, 200, 300, 400):
            deviation = math.hypot((1 - t) * std, t)
            assert x.mean().item() == pytest.approx((1 - t) * mean, abs=4 * deviation / 200 + 0.01)
            assert x.std().item() == pytest.approx(deviation, abs=4 * deviation / 283 + 0.01 * deviation)


def test_only_the_window_is_stochastic() -> None:
    grid = flow_grid(10)
    config = SamplerConfig(kind="sde", window=WindowConfig(size=3, start=2))
    steps = steps_of("flow", grid, config, window_of(config, grid, 0))
    everywhere, nowhere = steps_of("flow", grid, SamplerConfig(kind="sde")), steps_of("flow", grid, SamplerConfig())
    assert [number for number, step in enumerate(steps) if step.std] == [2, 3, 4]
    assert list(steps) == [(everywhere if 2 <= number < 5 else nowhere)[number] for number in range(10)]


def test_a_window_without_start_moves_with_the_seed_over_all_places() -> None:
    grid = flow_grid(10)
    config = SamplerConfig(kind="sde", window=WindowConfig(size=4))
    starts = {window_of(config, grid, seed).start for seed in range(60)}
    assert starts == set(range(6))  # steps 0 to 8 can be stochastic


def test_a_window_that_moves_goes_over_all_places_in_turn() -> None:
    """MixGRPO's progressive window: here a step every second round, over the six places of four steps among nine."""
    grid = flow_grid(10)
    config = SamplerConfig(kind="sde", window=WindowConfig(size=4, start=1, every=2))
    places = []
    for number in range(14):
        moved = config.model_copy(update={"window": config.window.at(number)})
        places.append(window_of(moved, grid, seed=number).start)
    assert places == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0, 1, 1]


def test_wrong_settings_say_what_is_wrong() -> None:
    grid = flow_grid(10)
    with pytest.raises(ConfigError, match="'sde' is for flow models"):
        steps_of("epsilon", grid, SamplerConfig(kind="sde"))
    with pytest.raises(ConfigError, match="use sde, dance or cps"):
        steps_of("flow", grid, SamplerConfig(kind="ddim"))
    with pytest.raises(ConfigError, match="only 9 of the steps"):
        window_of(SamplerConfig(kind="sde", window=WindowConfig(size=10)), grid, 0)
    with pytest.raises(ConfigError, match="use 0 to 5"):
        window_of(SamplerConfig(kind="sde", window=WindowConfig(size=4, start=6)), grid, 0)
    with pytest.raises(ConfigError, match="the schedule has 1000 levels"):
        grid_of(FLOW, 1001)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        SamplerConfig(kind="cps", noise_level=1.5)
