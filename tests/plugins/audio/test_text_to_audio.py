"""Denoising text-to-audio: Stable Audio's angles, what lies between sound and latents, and clips of a known length."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from polyalign.errors import ConfigError
from polyalign.policies.pipelines.config import AttentionLoraConfig
from polyalign.policies.pipelines.schedulers import grid_of_scheduler, schedule_of
from polyalign.policies.schedules import Schedule
from polyalign.records.schema import Message, TextPart
from polyalign.records.views import VIEWS
from polyalign_audio.generation_config import TextToAudioConfig
from polyalign_audio.generation_fixture import tone, tones
from polyalign_audio.mel import LEAST, log_mel
from polyalign_audio.pipeline_fixture import PIPELINES, policy
from polyalign_audio.text_to_audio import build

each_pipeline = pytest.mark.parametrize("name", PIPELINES)


def asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", parts=(TextPart(text=text),)),)


def test_the_cosine_schedule_is_stable_audios() -> None:
    """What CosineDPMSolverMultistepScheduler makes of a prediction at noise sigma, with sigma_data 1, on the circle: with
    x = signal * x0 + noise * eps and v = signal * eps - noise * x0, x0 is signal * x - noise * v. It is told the angle."""
    from diffusers import CosineDPMSolverMultistepScheduler

    scheduler = CosineDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0)
    schedule = schedule_of(scheduler)
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(1000))
    clean, noise = torch.randn(2, 7)
    for level in (10, 500, 900):
        at = torch.tensor(level)
        noised, v = schedule.add_noise(clean, noise, at), schedule.target(clean, noise, at)
        sigma = schedule.noise[level] / schedule.signal[level]
        theirs = scheduler.precondition_outputs(noised / schedule.signal[level], v, sigma)
        torch.testing.assert_close(theirs, clean, rtol=1e-4, atol=1e-4)
        assert float(scheduler.precondition_noise(sigma)) == pytest.approx(float(schedule.timestep(at)), abs=1e-5)


def test_the_grid_of_stable_audio_is_its_schedulers() -> None:
    from diffusers import CosineDPMSolverMultistepScheduler

    scheduler = CosineDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0)
    grid = grid_of_scheduler(scheduler, 5)
    scheduler.set_timesteps(5)
    assert [n / s for s, n in zip(grid.signal, grid.noise)] == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)
    assert grid.signal[-1] == 1.0 and grid.noise[-1] == 0.0
    assert grid.timesteps == pytest.approx([math.atan(sigma) * 2 / math.pi for sigma in scheduler.sigmas.tolist()[:-1]], rel=1e-4)


def test_schedules_that_are_not_known_are_refused() -> None:
    from diffusers import CosineDPMSolverMultistepScheduler

    with pytest.raises(ConfigError, match="v_prediction and sigma_data 1"):
        schedule_of(CosineDPMSolverMultistepScheduler(prediction_type="epsilon", sigma_data=1.0))
    assert Schedule.cosine(10).timesteps[-1] == 1.0


@each_pipeline
def test_drawn_clips_have_the_asked_length_and_score_as_drawn(name: str) -> None:
    made = policy(name)
    rollouts = made.generate([asked("a low note")], samples_per_prompt=2, seed=1, sampler={"kind": "ddim", "steps": 3})
    scores = made(made.collator.of_rollouts(rollouts))
    for row, rollout in enumerate(rollouts):
        assert rollout.old_log_probs is not None
        torch.testing.assert_close(scores.log_probs[row, 0], rollout.old_log_probs.flatten(), rtol=1e-4, atol=1e-4)
        assert rollout.output.rate == PIPELINES[name][1]
        assert rollout.output.duration == pytest.approx(0.16, rel=0.1)
        assert np.isfinite(rollout.output.samples).all()


@each_pipeline
def test_embeddings_do_not_depend_on_batch_mates(name: str) -> None:
    made = policy(name)
    captions = ["a low note", "a"]
    together = made._encode_captions(captions)
    alone = [made._encode_captions([caption])[0] for caption in captions]
    for first, second in zip(together, alone):
        for key, value in first.items():
            torch.testing.assert_close(value, second[key], rtol=1e-5, atol=1e-5)


@each_pipeline
def test_the_pipelines_own_sampler_draws_too(name: str) -> None:
    """Through the embeddings that training uses, with guidance; Stable Audio's wants torchsde."""
    if name == "stable_audio":
        pytest.importorskip("torchsde", reason="Stable Audio's own sampler needs torchsde (extra stable-audio)")
    drawn = [
        policy(name).generate([asked("a high note")], seed=seed, num_inference_steps=2, guidance_scale=2.0) for seed in (1, 1, 2)
    ]
    first, again, other = (one[0].output.samples for one in drawn)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@each_pipeline
@pytest.mark.slow
def test_a_saved_policy_loads_as_itself(name: str, tmp_path: Path) -> None:
    made = policy(name)
    records, media = tones(rate=PIPELINES[name][1], seconds=0.16)
    chosen = [sample for example in VIEWS["pairs"](records[0], media) for sample in example.samples]
    made.save(tmp_path)
    again = build(TextToAudioConfig(base=str(tmp_path)))
    torch.testing.assert_close(again(again.collate(chosen)).log_probs, made(made.collate(chosen)).log_probs, rtol=1e-4, atol=1e-5)
    assert again.fingerprint() == made.fingerprint()


def test_lora_is_refused_where_diffusers_has_none() -> None:
    with pytest.raises(ConfigError, match="drop policy.lora"):
        policy("stable_audio", lora=AttentionLoraConfig(rank=2))


def test_a_clip_longer_than_the_model_can_make_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy.seconds=3.*0.16 s at most"):
        policy("stable_audio", seconds=3.0)


def test_mel_bands_hear_a_sine_where_it_is_and_silence_nowhere() -> None:
    """A sine of 1 kHz is loudest in the band whose middle is nearest on Slaney's scale (linear up to 1 kHz, 66.7 Hz a mel):
    64 bands from 0 to 8 kHz are 45.2 mel, so 1 kHz, 15 mel, is band 15 / 45.2 * 65 = 21.5, counted from 1."""
    rate, hop = 16000, 160
    mel = log_mel(torch.from_numpy(0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)), rate, hop, 64)
    assert mel.shape == (100, 64)
    assert set(mel[10:90].argmax(1).tolist()) <= {20, 21}
    torch.testing.assert_close(log_mel(torch.zeros(1600), rate, hop, 64).exp(), torch.full((10, 64), LEAST), rtol=1e-3, atol=1e-7)


def test_stable_audio_hears_silence_behind_a_short_clip() -> None:
    family = policy("stable_audio").family_of_pipeline
    heard = family.to_vae(torch.from_numpy(tone(20.0, 0.05, 100).samples))
    assert heard.shape == (2, 16)
    assert torch.equal(heard[:, 5:], torch.zeros(2, 11)) and torch.equal(heard[0], heard[1])
