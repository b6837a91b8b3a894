"""The small text-to-video model of the zoo: its computed VAE, its captions, what it draws, and the readers that judge that."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyalign.assets import resolve_dataset
from polyalign.records.jsonl import read_jsonl
from polyalign.records.schema import text_of
from polyalign_video.clip import Clip
from polyalign_video.motion import MOVES, move_of, named_in
from polyalign_video.text_to_video.config import TextToVideoConfig
from polyalign_video.text_to_video.policy import build

BUILDERS = Path(__file__).resolve().parents[3] / "tools" / "builders"


@pytest.fixture(scope="module")
def builders() -> Iterator[tuple[Any, Any]]:
    """The modules that made the model: `moving_shapes` and `tiny_t2v_model`."""
    sys.path.insert(0, str(BUILDERS))
    try:
        import moving_shapes
        import tiny_t2v_model

        yield moving_shapes, tiny_t2v_model
    finally:
        sys.path.remove(str(BUILDERS))


def clips(moving_shapes: Any) -> tuple[list[tuple[str, str, str]], torch.Tensor]:
    """Return every thing in every move, and the clips ``[N, 3, F, H, W]`` in [0, 1]."""
    shown = [(*thing, move) for thing in moving_shapes.THINGS for move in MOVES]
    generator = torch.Generator().manual_seed(5)
    return shown, torch.stack([moving_shapes.clip(*one, generator) for one in shown])


def test_the_vae_is_the_mean_of_four_pixels_and_its_inverse_is_smooth(builders: tuple[Any, Any]) -> None:
    """Encoding a clip in [-1, 1] gives the 2 x 2 means, less the white of 1; decoding repeats each mean four times and mixes
    neighbours by 1/4, 1/2, 1/4, with white outside. Both are worked out here by pooling and a plain convolution."""
    moving_shapes, tiny_t2v_model = builders
    pixels = clips(moving_shapes)[1][::17] * 2 - 1
    vae = tiny_t2v_model.new_vae()
    latents = vae.encode(pixels).latent_dist.mean
    expected = F.avg_pool3d(pixels - 1, (1, 2, 2))
    assert latents.shape == (len(pixels), 3, 8, 16, 16)
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)
    kernel = torch.outer(*[torch.tensor([0.25, 0.5, 0.25])] * 2)[None, None]
    repeated = expected.repeat_interleave(2, 3).repeat_interleave(2, 4).reshape(-1, 1, 32, 32)
    smooth = F.conv2d(repeated, kernel, padding=1).reshape(pixels.shape) + 1
    torch.testing.assert_close(vae.decode(latents).sample, smooth, atol=1e-4, rtol=0)


def test_the_readers_find_move_colour_and_shape_of_every_clip(builders: tuple[Any, Any]) -> None:
    """Through the VAE's blur too: what the proof counts as wrong is the model's doing."""
    moving_shapes, tiny_t2v_model = builders
    shown, pixels = clips(moving_shapes)
    vae = tiny_t2v_model.new_vae()
    with torch.no_grad():
        blurred = torch.cat([vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample for part in pixels.split(32)])
    frames = (blurred / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)  # [N, F, H, W, 3]
    for one, clip in zip(shown, frames, strict=True):
        assert move_of(Clip((clip.numpy() * 255).round().astype(np.uint8), 4.0)) == one[2], one
        assert moving_shapes.thing_in(clip[4]) == one[:2], one


def test_nothing_is_found_in_white(builders: tuple[Any, Any]) -> None:
    assert builders[0].thing_in(torch.ones(32, 32, 3)) is None


def test_captions_to_test_on_name_things_that_training_never_shows(builders: tuple[Any, Any]) -> None:
    moving_shapes, _ = builders
    folder = resolve_dataset("dataset:move-prompts")
    captions = {
        split: [text_of(record.prompt[-1].parts) for _, record in read_jsonl(folder / f"{split}.jsonl")]
        for split in ("train", "test")
    }
    things = {split: {tuple(caption.split()[1:3]) for caption in found} for split, found in captions.items()}
    assert things["test"] == moving_shapes.HELD_OUT and things["train"] == set(moving_shapes.TRAINED)
    assert things["test"] | things["train"] == set(moving_shapes.THINGS) and not things["test"] & things["train"]
    for split, found in captions.items():
        assert len(set(found)) == len(found) == len(things[split]) * len(MOVES)
        assert {named_in(caption) for caption in found} == set(MOVES)


def test_the_model_moves_things_as_captions_say_far_above_chance_and_not_always() -> None:
    """Seven moves: chance is 1/7. What is missing is what alignment is for; the numbers are in the README of polyalign-zoo."""
    policy = build(TextToVideoConfig(base="zoo:tiny-t2v", frames=8, height=32, width=32, fps=4.0, max_sequence_length=8))
    folder = resolve_dataset("dataset:move-prompts")
    prompts = [record.prompt for _, record in read_jsonl(folder / "test.jsonl")]
    rollouts = policy.generate(prompts, seed=3, sampler={"kind": "ode", "steps": 8, "batch_size": 35})
    right = [move_of(rollout.output) == named_in(text_of(rollout.prompt[-1].parts)) for rollout in rollouts]
    assert len(right) == 35 and 2.5 / 7 < np.mean(right) < 1
