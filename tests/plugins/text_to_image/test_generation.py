"""Pictures and files: what diffusers itself makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from polyalign.errors import ConfigError
from polyalign.policies.adapters import trainable
from polyalign.randomness import keyed_generator
from polyalign.records.schema import Message
from polyalign_text_to_image import fixture
from polyalign_text_to_image.config import TextToImageConfig
from polyalign_text_to_image.policy import TextToImagePolicy, build

PROMPTS = [(Message(role="user", parts=text),) for text in ("a red disc", "a blue square")]
XL = pytest.param("unet_xl", marks=pytest.mark.slow)
FAMILIES = ["flow", "unet", XL]


def pixels(picture: object) -> np.ndarray:
    return np.asarray(picture).astype(int)


def trained(policy: TextToImagePolicy) -> TextToImagePolicy:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


def by_diffusers(pipeline: DiffusionPipeline, policy: TextToImagePolicy, guidance: float = 3.0) -> list[np.ndarray]:
    """Draw the same two pictures by the pipeline's ordinary call."""
    captions = ["a red disc", "a blue square"]
    pipeline.set_progress_bar_config(disable=True)
    generators = [keyed_generator(7, "generate", caption, 0) for caption in captions]
    side = policy.resolution
    images = pipeline(
        captions, num_inference_steps=2, guidance_scale=guidance, generator=generators, height=side, width=side
    ).images
    return [pixels(image) for image in images]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_are_those_of_the_pipelines_own_call(family: str, guidance: float) -> None:
    policy = trained(fixture.policy(family))
    rollouts = policy.generate(PROMPTS, seed=7, num_inference_steps=2, guidance_scale=guidance)
    expected = by_diffusers(policy.frozen.assemble(policy.network), policy, guidance)
    for rollout, picture in zip(rollouts, expected, strict=True):
        assert np.abs(pixels(rollout.output) - picture).max() <= 1  # rounding to 8 bits
    assert rollouts[0].decoding["seed"] == 7 and rollouts[0].decoding["num_inference_steps"] == 2


def test_noise_of_a_picture_does_not_depend_on_what_else_is_drawn() -> None:
    policy = fixture.policy("flow")
    together = policy.generate(PROMPTS, samples_per_prompt=2, seed=7, num_inference_steps=1)
    assert [rollout.prompt for rollout in together] == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    one_by_one = policy.generate(PROMPTS, samples_per_prompt=2, seed=7, num_inference_steps=1, batch_size=1)
    alone = policy.generate(PROMPTS[1:], seed=7, num_inference_steps=1)
    repeated = policy.generate([PROMPTS[1], PROMPTS[1]], seed=7, num_inference_steps=1)
    pictures = [pixels(rollout.output) for rollout in together]
    for mine, other in zip(pictures, one_by_one, strict=True):
        assert np.abs(mine - pixels(other.output)).max() <= 1
    assert np.abs(pictures[2] - pixels(alone[0].output)).max() <= 1
    assert np.abs(pictures[3] - pixels(repeated[1].output)).max() <= 1
    assert np.abs(pictures[2] - pictures[3]).max() > 5
    other_seed = policy.generate(PROMPTS[1:], seed=8, num_inference_steps=1)
    assert np.abs(pictures[2] - pixels(other_seed[0].output)).max() > 5


def test_drawing_leaves_training_mode_and_global_randomness_alone() -> None:
    policy = fixture.policy("unet")
    policy.train()
    state = torch.get_rng_state()
    policy.generate(PROMPTS[:1], num_inference_steps=1)
    assert policy.training and torch.equal(torch.get_rng_state(), state)


def test_captions_already_embedded_are_not_encoded_again() -> None:
    policy = fixture.policy("unet")
    policy.generate(PROMPTS, num_inference_steps=1)
    calls: list[int] = []
    hook = policy.frozen.text_modules()["text_encoder"].register_forward_hook(lambda *_: calls.append(1))
    policy.generate(PROMPTS, seed=1, num_inference_steps=1)
    hook.remove()
    assert calls == []


def test_unknown_decoding_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"steps: Extra inputs .* Known: sampler, num_inference_steps"):
        fixture.policy("unet").generate(PROMPTS, steps=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_file_is_one_that_diffusers_loads(family: str, tmp_path: Path) -> None:
    """Alpha differs from rank, so a loader that ignored it would draw something else."""
    policy = trained(fixture.policy(family, lora={"rank": 4, "alpha": 8}))
    policy.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    plain = fixture.PIPELINES[family]()
    untuned = by_diffusers(plain, policy)
    plain.load_lora_weights(tmp_path)
    ours = [pixels(rollout.output) for rollout in policy.generate(PROMPTS, seed=7, num_inference_steps=2, guidance_scale=3.0)]
    for mine, theirs, base in zip(ours, by_diffusers(plain, policy), untuned, strict=True):
        assert np.abs(mine - theirs).max() <= 1
        assert np.abs(mine - base).max() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_full_checkpoint_is_one_that_diffusers_and_we_load(family: str, tmp_path: Path) -> None:
    policy = trained(fixture.policy(family, lora=None))
    policy.save(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    ours = [pixels(rollout.output) for rollout in policy.generate(PROMPTS, seed=7, num_inference_steps=2, guidance_scale=3.0)]
    for mine, theirs in zip(ours, by_diffusers(loaded, policy), strict=True):
        assert np.abs(mine - theirs).max() <= 1
    again = build(TextToImageConfig(base=str(tmp_path), resolution=policy.resolution), seed=0)
    assert again.collator.latent_fingerprint == policy.collator.latent_fingerprint
    assert again.collator.text_fingerprint == policy.collator.text_fingerprint  # so caches outlive a move of the folder
    for name, value in policy.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)


def test_bfloat16_pipelines_load_draw_and_keep_a_float32_vae(tmp_path: Path) -> None:
    fixture.policy("flow", lora=None).save(tmp_path)
    policy = build(TextToImageConfig(base=str(tmp_path), dtype="bfloat16", lora={"rank": 2}))
    assert policy.frozen.vae.dtype == torch.float32 and policy.network.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in trainable(policy).values()} == {torch.float32}
    assert policy.generate(PROMPTS[:1], num_inference_steps=1)[0].output.size == (32, 32)


def test_a_base_that_is_no_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.base='.*' is not a diffusers pipeline"):
        build(TextToImageConfig(base=str(tmp_path)))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ConfigError, match="is a FluxPipeline"):
        build(TextToImageConfig(base=str(tmp_path)))
