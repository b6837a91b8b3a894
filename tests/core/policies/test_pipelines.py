"""Our schedules against the diffusers schedulers they stand for."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, KarrasVeScheduler

from polyalign.errors import ConfigError
from polyalign.policies.pipelines.families import PipelineFamily, family_of
from polyalign.policies.pipelines.schedulers import schedule_of

CLEAN, NOISE = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddpm_noising_and_targets_equal_diffusers(prediction: str) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)
    schedule, level = schedule_of(scheduler), torch.tensor([0, 500, 999])
    torch.testing.assert_close(schedule.add_noise(CLEAN, NOISE, level), scheduler.add_noise(CLEAN, NOISE, level))
    expected = NOISE if prediction == "epsilon" else scheduler.get_velocity(CLEAN, NOISE, level)
    torch.testing.assert_close(schedule.target(CLEAN, NOISE, level), expected)
    assert schedule.timestep(level).tolist() == [0, 500, 999]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_noising_and_timesteps_equal_diffusers(shift: float) -> None:
    """diffusers lists levels from noise to clean, we from clean to noise."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule, level = schedule_of(scheduler), torch.tensor([0, 500, 999])
    timesteps = scheduler.timesteps.flip(0)[level]
    torch.testing.assert_close(schedule.timestep(level), timesteps)
    torch.testing.assert_close(schedule.add_noise(CLEAN, NOISE, level), scheduler.scale_noise(CLEAN, timesteps, NOISE))


def test_schedule_is_that_of_training_also_after_sampling() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = schedule_of(scheduler).description()
    scheduler.set_timesteps(4)
    assert schedule_of(scheduler).description() == before


def test_prediction_can_be_overridden_where_that_makes_sense() -> None:
    assert schedule_of(DDIMScheduler(), "v_prediction").prediction == "v_prediction"
    with pytest.raises(ConfigError, match="is a flow; use 'auto' or 'flow'"):
        schedule_of(FlowMatchEulerDiscreteScheduler(), "epsilon")
    with pytest.raises(ConfigError, match="predicts 'sample'; expected 'epsilon' or 'v_prediction'"):
        schedule_of(DDIMScheduler(prediction_type="sample"))
    with pytest.raises(ConfigError, match="KarrasVeScheduler has neither"):
        schedule_of(KarrasVeScheduler())


def test_unknown_pipelines_are_named_with_the_known_ones() -> None:
    class Known(PipelineFamily):
        pipelines = ("StableDiffusionPipeline",)

    assert family_of([Known], "StableDiffusionPipeline", "x") is Known
    with pytest.raises(ConfigError, match=r"policy\.base='x' is a FluxPipeline; .* StableDiffusionPipeline"):
        family_of([Known], "FluxPipeline", "x")
