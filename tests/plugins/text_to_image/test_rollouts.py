"""Rollouts of text-to-image policies: against diffusers' own schedulers and pipelines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from polyalign.errors import ConfigError
from polyalign.policies.config import SamplerConfig
from polyalign.policies.pipelines.schedulers import grid_of_scheduler
from polyalign.policies.samplers import steps_of
from polyalign.records.schema import Message
from polyalign_text_to_image import fixture

PROMPTS = [(Message(role="user", parts=text),) for text in ("a red disc", "a blue square")]
XL = pytest.param("unet_xl", "ddim", marks=pytest.mark.slow)


@pytest.mark.parametrize(("family", "kind"), [("flow", "sde"), ("flow", "cps"), ("unet", "ddim"), ("unet", "cps"), XL])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_ratios_are_one_at_unchanged_weights(family: str, kind: str, guidance: float) -> None:
    policy = fixture.policy(family)
    rollouts = policy.generate(PROMPTS, samples_per_prompt=2, seed=3, sampler={"kind": kind, "steps": 4, "guidance": guidance})
    scores = policy(policy.collator.of_rollouts(rollouts))
    old = torch.stack([rollout.old_log_probs for rollout in rollouts])
    torch.testing.assert_close((scores.log_probs[:, 0] - old).exp(), torch.ones_like(old), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["flow", "unet"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_ode_draws_the_pictures_of_the_pipelines_own_call(family: str, guidance: float) -> None:
    """Both fixtures' pipelines sample deterministically: FlowMatchEuler, and DDIM with eta 0. Same seed, same pictures."""
    policy = fixture.policy(family)
    ours = policy.generate(PROMPTS, seed=7, sampler={"kind": "ode", "steps": 4, "guidance": guidance})
    theirs = policy.generate(PROMPTS, seed=7, num_inference_steps=4, guidance_scale=guidance)
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(np.asarray(mine.output).astype(int) - np.asarray(other.output).astype(int)).max() <= 1


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_steps_are_diffusers(eta: float, prediction: str, to_one: bool) -> None:
    scheduler = DDIMScheduler(
        clip_sample=False, set_alpha_to_one=to_one, steps_offset=1, prediction_type=prediction, beta_schedule="scaled_linear"
    )
    grid = grid_of_scheduler(scheduler, 5)
    scheduler.set_timesteps(5)
    x, p, z = torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    for step, timestep in zip(steps_of(prediction, grid, SamplerConfig(kind="ddim", noise_level=eta)), scheduler.timesteps):
        more = {"eta": eta, "variance_noise": z} if eta else {}
        expected = scheduler.step(p, timestep, x, **more)
        torch.testing.assert_close(
            step.state * x + step.prediction * p + step.std * z, expected.prev_sample, rtol=1e-5, atol=1e-6
        )
        clean = expected.pred_original_sample
        torch.testing.assert_close(step.clean[0] * x + step.clean[1] * p, clean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_flow_steps_are_diffusers(dynamic: bool) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    grid = grid_of_scheduler(scheduler, 6, patches=1024)
    mu = {"mu": 0.5 + (1024 - 256) * (1.15 - 0.5) / (4096 - 256)} if dynamic else {}  # between the two settings
    scheduler.set_timesteps(6, **mu)
    x, p = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0)).unbind()
    for step, timestep in zip(steps_of("flow", grid, SamplerConfig()), scheduler.timesteps, strict=True):
        assert step.timestep == pytest.approx(float(timestep))
        expected = scheduler.step(p, timestep, x).prev_sample
        torch.testing.assert_close(step.state * x + step.prediction * p, expected, rtol=1e-5, atol=1e-5)
        x = expected


def test_captions_already_embedded_are_not_encoded_again_and_the_empty_one_once() -> None:
    policy = fixture.policy("unet")
    sampler = {"kind": "ddim", "steps": 1, "guidance": 3.0}
    policy.generate(PROMPTS, seed=0, sampler=sampler)
    calls: list[int] = []
    hook = policy.frozen.text_modules()["text_encoder"].register_forward_hook(lambda *_: calls.append(1))
    policy.generate(PROMPTS, seed=1, samples_per_prompt=2, sampler=sampler)
    hook.remove()
    assert calls == []


def test_a_pipeline_that_takes_zeros_for_the_empty_prompt_is_guided_from_zeros() -> None:
    policy = fixture.policy("unet_xl")
    policy.collator = replace_features(policy.collator)
    policy.frozen.settings = {**policy.frozen.settings, "force_zeros_for_empty_prompt": True}
    policy.encode_blank()
    assert not any(value.any() for value in policy.collator.blank().values())


def replace_features(collator: object) -> object:
    import copy

    from polyalign.policies.feature_cache import FeatureCache

    fresh = copy.copy(collator)
    fresh.features = FeatureCache()
    return fresh


def test_a_sampler_and_the_pipelines_options_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="does not read num_inference_steps"):
        fixture.policy("unet").generate(PROMPTS, num_inference_steps=3, sampler={"kind": "ddim"})


def test_transitions_train_the_adapters() -> None:
    policy = fixture.policy("flow")
    rollouts = policy.generate(PROMPTS, seed=0, sampler={"kind": "sde", "steps": 3})
    batch = policy.collator.of_rollouts([replace(rollout) for rollout in rollouts])
    before = policy(batch).log_probs.detach()
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        (-policy(batch).log_probs.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert policy(batch).log_probs.mean() > before.mean()


def test_a_moving_window_is_elsewhere_in_later_rounds() -> None:
    """MixGRPO: what is decided, and so scored, moves from the noisy steps to the clean ones."""
    policy = fixture.policy("flow")
    decoding = {"sampler": {"kind": "sde", "steps": 5, "window": {"size": 2, "every": 3}}}
    times = []
    for number in (0, 2, 3, 6, 9):
        (rollout, _) = policy.generate(PROMPTS, seed=0, **policy.decoding_at(decoding, number))
        times.append([decision.t for decision in rollout.decisions])
    assert all(len(round_) == 2 for round_ in times)
    assert times[0] == times[1] == times[4]
    assert times[0][1] == times[2][0] > times[2][1] == times[3][0] > times[3][1]
    assert policy.decoding_at({"sampler": {"kind": "sde"}}, 7) == {"sampler": {"kind": "sde"}}
