"""Text-to-video policies against diffusers' own pipelines, VAEs and schedulers."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DiffusionPipeline

from polyalign.errors import ConfigError
from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.dense import DenseDPO
from polyalign.policies.adapters import trainable
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample
from polyalign.records.schema import Message, Record, Segment
from polyalign.records.views import VIEWS
from polyalign.training.batches import collate_examples
from polyalign_video.clip import Clip
from polyalign_video.text_to_video import fixture, tiny
from polyalign_video.text_to_video.config import TextToVideoConfig
from polyalign_video.text_to_video.families import CogVideoX, Wan
from polyalign_video.text_to_video.frames import to_clips, to_pixels
from polyalign_video.text_to_video.policy import TextToVideoPolicy, build

FAMILIES = ("wan", "cogvideox", "ltx")
CAPTIONS = ["a red square", "a blue square"]
PROMPTS = [(Message(role="user", parts=text),) for text in CAPTIONS]
RECORDS, MEDIA = fixture.clips()


def samples_of(record: Record) -> tuple[Sample, ...]:
    return VIEWS["pairs"](record, MEDIA)[0].samples


def moved(policy: TextToVideoPolicy) -> TextToVideoPolicy:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


def by_diffusers(pipeline: DiffusionPipeline, policy: TextToVideoPolicy, guidance: float) -> list[np.ndarray]:
    """Draw the two captions by the pipeline's ordinary call, from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    start = torch.stack(
        [torch.randn(policy.shape_of_latents, generator=keyed_generator(7, "generate", caption, 0)) for caption in CAPTIONS]
    )
    size = policy.config
    frames = pipeline(
        CAPTIONS,
        latents=policy.family_of_pipeline.to_call(start, policy.network),
        num_inference_steps=2,
        guidance_scale=guidance,
        num_frames=size.frames,
        height=size.height,
        width=size.width,
        max_sequence_length=tiny.TEXT_LENGTH,
        output_type="np",
    ).frames
    return [(clip * 255).round().astype(int) for clip in frames]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_clips_are_those_of_the_pipelines_own_call_and_so_are_the_odes(family: str, guidance: float) -> None:
    """All three fixtures' schedulers sample deterministically. Differences of one are rounding to 8 bits."""
    policy = moved(fixture.policy(family))
    expected = by_diffusers(policy.frozen.assemble(policy.network), policy, guidance)
    own = policy.generate(PROMPTS, seed=7, num_inference_steps=2, guidance_scale=guidance)
    ode = policy.generate(PROMPTS, seed=7, sampler={"kind": "ode", "steps": 2, "guidance": guidance})
    for clip, mine, stepped in zip(expected, own, ode, strict=True):
        assert clip.std() > 1 and mine.output.fps == fixture.FPS
        assert np.abs(mine.output.frames.astype(int) - clip).max() <= 1
        assert np.abs(stepped.output.frames.astype(int) - clip).max() <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_are_normalised_as_the_pipeline_undoes_it(family: str) -> None:
    """Decoding the cached latents gives what the VAE makes of its own latents of the clip; only their scale differs."""
    policy = fixture.policy(family)
    (sample, _) = samples_of(RECORDS[0])
    with torch.no_grad():
        (entry,) = policy.encode_latents([sample])
        raw = policy.frozen.vae.encode(policy.read_media(sample)[None]).latent_dist.mode()
        expected = policy.finished(policy.family_of_pipeline.decode(policy.frozen.vae, raw))
        decoded = policy.decode_latents(entry["mean"][None])
    assert entry["mean"].shape == policy.shape_of_latents and not torch.allclose(entry["mean"], raw[0], atol=1e-3)
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-4)


def test_cogvideox_scores_are_errors_of_v_by_hand() -> None:
    policy = fixture.policy("cogvideox", lora=None)
    sample = samples_of(RECORDS[0])[0]
    score = policy(policy.collate([sample])).log_probs.item()
    clean = policy.collator.features.load(policy.collator.latent_key(sample))["mean"][None].transpose(1, 2)
    level = torch.tensor([policy.collator.level(sample.draw_key, ("epoch 0", 0))])
    noise = policy.collator.noise(sample.draw_key, ("epoch 0", 0), policy.shape_of_latents)[None].transpose(1, 2)
    pipeline = policy.frozen.assemble(policy.network)
    scheduler = pipeline.scheduler
    assert isinstance(scheduler, CogVideoXDDIMScheduler) and policy.schedule.prediction == "v_prediction"
    text, _ = pipeline.encode_prompt(CAPTIONS[0], None, False, max_sequence_length=tiny.TEXT_LENGTH)
    rotary = pipeline._prepare_rotary_positional_embeddings(fixture.SIDE, fixture.SIDE, clean.shape[1], "cpu")
    with torch.no_grad():
        predicted = policy.network(
            scheduler.add_noise(clean, noise, level), text, level, image_rotary_emb=rotary, return_dict=False
        )[0]
    expected = -0.5 * (predicted - scheduler.get_velocity(clean, noise, level)).square().mean()
    assert score == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_decisions_per_frame_add_up_to_the_clips_score(reduction: str) -> None:
    whole, cut = (fixture.policy("ltx", per_frame=per_frame, reduction=reduction) for per_frame in (False, True))
    samples = samples_of(RECORDS[0])
    one, many = whole(whole.collate(samples)), cut(cut.collate(samples))
    assert one.log_probs.shape == (2, 1, 1) and many.log_probs.shape == many.mask.shape == (2, 1, whole.shape_of_latents[1])
    torch.testing.assert_close(many.log_probs.sum(-1, keepdim=True), one.log_probs, rtol=1e-5, atol=1e-6)
    assert whole.fingerprint() != cut.fingerprint()  # cached reference scores of the two are not mixed up
    assert cut.generate(PROMPTS[:1], seed=1, sampler={"kind": "sde", "steps": 2})  # rollouts are whole


def test_dense_dpo_prefers_each_response_where_its_label_is_higher() -> None:
    """The chosen clip is labelled bad in its second latent frame. Its gradient there is that of a rejected response: the
    loss at the reference rises with the score of that decision, and falls with that of the first."""
    policy = fixture.policy("ltx", per_frame=True)
    labels = [Segment(candidate=0, start=at, end=at + 1, unit="steps", value=value) for at, value in enumerate((1.0, -1.0))]
    record = RECORDS[0].model_copy(update={"feedback": (*RECORDS[0].feedback, *labels)})
    examples = VIEWS["pairs"](record, MEDIA)
    policy.encode_missing(examples[0].samples)
    micro = collate_examples(examples, policy.collator)
    scores = policy(micro.batch)
    leaf = scores.log_probs.detach().requires_grad_()
    feedback: FeedbackTensors = micro.feedback
    term = DenseDPO()(replace(scores, log_probs=leaf), {"reference": scores.detach()}, feedback)["preference"]
    (gradient,) = torch.autograd.grad(term.sum, leaf)
    chosen = int(feedback.edges.better[0])
    assert gradient[chosen, 0, 0] < 0 < gradient[chosen, 0, 1]


def test_sizes_that_the_pipeline_cannot_draw_are_refused_together() -> None:
    with pytest.raises(ConfigError, match=r"height=24, but a WanPipeline wants multiples of 16 .*frames=6, .* 4n \+ 1 frames"):
        fixture.policy("wan", height=24, frames=6)
    with pytest.raises(ConfigError, match="multiples of 32"):
        fixture.policy("ltx", width=16)
    assert fixture.policy("cogvideox", frames=8).shape_of_latents[1] == 2


def test_variants_with_another_layout_are_refused() -> None:
    with pytest.raises(ConfigError, match="two denoisers"):
        pipeline = tiny.wan()
        pipeline.transformer_2 = copy.deepcopy(pipeline.transformer)
        Wan(pipeline)
    with pytest.raises(ConfigError, match=r"CogVideoX 1\.5"):
        pipeline = tiny.cogvideox()
        pipeline.transformer.register_to_config(patch_size_t=2)
        CogVideoX(pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_those_that_diffusers_loads(family: str, tmp_path: Path) -> None:
    """LoRA weights on a fresh pipeline, and a whole folder, draw what the trained policy draws."""
    policy = moved(fixture.policy(family, lora={"rank": 4, "alpha": 8}))
    ours = [rollout.output.frames.astype(int) for rollout in policy.generate(PROMPTS, seed=7, num_inference_steps=2)]
    policy.save(tmp_path / "lora")
    plain = fixture.PIPELINES[family]()
    untuned = by_diffusers(plain, policy, 5.0)
    plain.load_lora_weights(tmp_path / "lora")
    policy.save_merged(tmp_path / "merged")
    size = {name: getattr(policy.config, name) for name in ("frames", "height", "width", "max_sequence_length")}
    again = build(TextToVideoConfig(base=str(tmp_path / "merged"), **size))
    for mine, theirs, base, whole in zip(
        ours,
        by_diffusers(plain, policy, 5.0),
        untuned,
        again.generate(PROMPTS, seed=7, num_inference_steps=2),
        strict=True,
    ):
        assert np.abs(mine - theirs).max() <= 1 and np.abs(mine - base).max() > 1
        assert np.abs(mine - whole.output.frames.astype(int)).max() <= 1


def test_frames_are_spread_evenly_repeated_and_cut_out_of_the_middle() -> None:
    """Frame k of eight is all of value k; 16 x 8 pixels, the middle half white."""
    frames = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((8, 4, 4, 3), np.uint8)
    for count, expected in ((4, [1, 3, 5, 7]), (8, list(range(8))), (16, [k // 2 for k in range(16)])):
        values = (to_pixels(Clip(frames, 8.0), count, 4, 4)[0, :, 0, 0] + 1) * 127.5
        assert values.round().int().tolist() == expected
    wide = np.zeros((1, 8, 16, 3), np.uint8)
    wide[:, :, 4:12] = 255
    assert (to_pixels(Clip(wide, 8.0), 1, 8, 8) == 1).all()
    (back,) = to_clips((to_pixels(Clip(frames, 8.0), 8, 4, 4)[None] + 1) / 2, 4.0)
    assert np.array_equal(back.frames, frames) and back.fps == 4.0
