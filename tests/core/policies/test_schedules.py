from __future__ import annotations

import pytest
import torch

from polyalign.errors import ConfigError
from polyalign.policies.schedules import Schedule
from polyalign.randomness import keyed_generator

ALPHAS = torch.tensor([0.81, 0.36])


def test_variance_preserving_noise_by_hand() -> None:
    """alphas_cumprod 0.36 gives signal 0.6 and noise 0.8: 0.6 * 2 + 0.8 * 1 = 2."""
    schedule = Schedule.variance_preserving(ALPHAS)
    noised = schedule.add_noise(torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([1]))
    torch.testing.assert_close(noised, torch.tensor([[2.0]]))


def test_v_prediction_target_by_hand() -> None:
    """v = signal * eps - noise * y0 = 0.6 * 1 - 0.8 * 2 = -1."""
    schedule = Schedule.variance_preserving(ALPHAS, "v_prediction")
    target = schedule.target(torch.tensor([[2.0]]), torch.tensor([[1.0]]), torch.tensor([1]))
    torch.testing.assert_close(target, torch.tensor([[-1.0]]))


def test_v_and_noised_latent_give_the_clean_latent_back() -> None:
    """signal * y_t - noise * v = y0, since signal^2 + noise^2 = 1."""
    schedule = Schedule.variance_preserving(torch.linspace(0.99, 0.01, 7), "v_prediction")
    clean, noise, level = torch.randn(7, 3), torch.randn(7, 3), torch.arange(7)
    noised, v = schedule.add_noise(clean, noise, level), schedule.target(clean, noise, level)
    torch.testing.assert_close(schedule.signal[:, None] * noised - schedule.noise[:, None] * v, clean)


def test_epsilon_target_is_the_noise() -> None:
    noise = torch.randn(1, 3)
    assert torch.equal(Schedule.variance_preserving(ALPHAS).target(torch.zeros(1, 3), noise, torch.tensor([0])), noise)


def test_flow_with_shift_by_hand() -> None:
    """s = 1/2 and shift 3: sigma = 1.5 / 2 = 0.75, so y_t = 0.25 * 4 + 0.75 * 8 = 7, velocity 8 - 4, timestep 2 * 0.75."""
    schedule = Schedule.flow(2, shift=3.0)
    clean, noise, level = torch.tensor([[4.0]]), torch.tensor([[8.0]]), torch.tensor([0])
    assert schedule.add_noise(clean, noise, level).item() == pytest.approx(7.0)
    assert schedule.target(clean, noise, level).item() == 4.0
    assert schedule.timestep(level).item() == pytest.approx(1.5)


def test_last_flow_level_is_pure_noise() -> None:
    schedule = Schedule.flow(10, shift=3.0)
    noise = torch.randn(1, 5)
    assert torch.equal(schedule.add_noise(torch.randn(1, 5), noise, torch.tensor([9])), noise)


def test_levels_are_looked_up_per_draw() -> None:
    """Clean [P, 1, ...] and level [P, D] broadcast to [P, D, ...]."""
    schedule = Schedule.flow(4)
    noised = schedule.add_noise(torch.ones(2, 1, 3, 5), torch.zeros(2, 2, 3, 5), torch.tensor([[0, 1], [2, 3]]))
    expected = torch.tensor([[0.75, 0.5], [0.25, 0.0]])[:, :, None, None].expand(2, 2, 3, 5)
    torch.testing.assert_close(noised, expected)


def _levels(distribution: str, count: int = 4000) -> torch.Tensor:
    schedule = Schedule.flow(1000)
    return torch.tensor([schedule.draw_level(distribution, keyed_generator("levels", i)) for i in range(count)]).double()


def test_uniform_levels_have_the_moments_of_the_uniform_distribution() -> None:
    """Mean 499.5 and variance (1000^2 - 1) / 12 over 0..999; bounds are five standard errors of 4000 draws."""
    levels = _levels("uniform")
    assert abs(levels.mean() - 499.5) < 5 * 288.7 / 4000**0.5
    assert abs(levels.std() - 288.7) < 10
    assert levels.min() >= 0 and levels.max() <= 999


def test_logit_normal_levels_have_the_quartiles_of_the_logit_normal_distribution() -> None:
    """sigmoid(z) has quartiles sigmoid(-0.6745) = 0.3375, 0.5 and 0.6625."""
    levels = _levels("logit_normal")
    quartiles = levels.quantile(torch.tensor([0.25, 0.5, 0.75]).double()) / 1000
    torch.testing.assert_close(quartiles, torch.tensor([0.3375, 0.5, 0.6625]).double(), atol=0.02, rtol=0)


def test_descriptions_differ_when_schedules_do() -> None:
    schedules = [Schedule.flow(10), Schedule.flow(10, 3.0), Schedule.flow(11), Schedule.variance_preserving(ALPHAS)]
    schedules.append(Schedule.variance_preserving(ALPHAS, "v_prediction"))
    assert len({schedule.description() for schedule in schedules}) == len(schedules)


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sample'; expected 'epsilon', 'v_prediction' or 'flow'"):
        Schedule.variance_preserving(ALPHAS, "sample")  # type: ignore[arg-type]
