"""Rewards that are differentiable: the same numbers from tensors as from pictures, and gradients that raise them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from polyalign.errors import RewardError
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign_image.colours import ColourRule
from polyalign_image.config import ClipScoreConfig, ColourRuleConfig, TintConfig
from polyalign_image.text_fit import ClipScore
from polyalign_image.tint import Tint

PROMPTS = [(Message(role="user", parts=text),) for text in ("a red apple", "a blue bus", "a thing")]


def pictures(side: int) -> tuple[torch.Tensor, list[Judged]]:
    """Return three smooth random pictures as tensors and as items, equal to 8 bits."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(3, 3, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, side, mode="bilinear")
    pixels = (pixels * 255).round() / 255
    images = [Image.fromarray((picture.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)) for picture in pixels]
    return pixels, [Judged(prompt, image) for prompt, image in zip(PROMPTS, images, strict=True)]


def test_tint_of_tensors_is_tint_of_pictures() -> None:
    pixels, items = pictures(16)
    reward = Tint(TintConfig())
    values = reward.on_tensors(pixels, PROMPTS)
    np.testing.assert_allclose(values.numpy(), reward.score(items), atol=1e-6)
    assert values[2] == 0.5  # no colour is named


@pytest.mark.parametrize(("rgb", "expected"), [((220, 20, 30), 1.0), ((255, 255, 255), 1 - (35 + 235 + 225) / 3 / 255)])
def test_tint_by_hand(rgb: tuple[int, int, int], expected: float) -> None:
    """A picture of the colour itself scores 1; a white one, one minus white's mean distance to it."""
    (value,) = Tint(TintConfig(colour="red")).score([Judged(PROMPTS[1], Image.new("RGB", (4, 4), rgb))])
    assert value == pytest.approx(expected, abs=1e-6)


def test_tint_ignores_a_white_background() -> None:
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste((40, 90, 220), (2, 2, 6, 6))
    (value,) = Tint(TintConfig(colour="blue")).score([Judged(PROMPTS[0], picture)])
    assert value > 0.99


def test_clip_score_of_tensors_is_that_of_pictures() -> None:
    """128 pixels need no scaling; at 64, where PIL rounds what it has scaled to 8 bits, noise like this moves by up to 0.02."""
    reward = ClipScore(ClipScoreConfig())
    for side, tolerance in ((128, 1e-5), (64, 2e-2)):
        pixels, items = pictures(side)
        np.testing.assert_allclose(reward.on_tensors(pixels, PROMPTS).detach().numpy(), reward.score(items), atol=tolerance)


@pytest.mark.parametrize("reward", [Tint(TintConfig()), ClipScore(ClipScoreConfig())], ids=["tint", "clip_score"])
def test_the_gradient_raises_the_reward(reward: object) -> None:
    pixels, _ = pictures(64)
    pixels.requires_grad_(True)
    before = reward.on_tensors(pixels, PROMPTS)[:2]
    before.sum().backward()
    step = 0.02 * pixels.grad / pixels.grad.flatten(1).norm(dim=1).clamp(min=1e-9)[:, None, None, None]
    after = reward.on_tensors((pixels + step).detach(), PROMPTS)[:2]
    assert (after > before).all()


def test_a_reward_without_gradient_says_so() -> None:
    with pytest.raises(RewardError, match="'colour_rule' is not differentiable"):
        ColourRule(ColourRuleConfig()).on_tensors(torch.zeros(1, 3, 2, 2), PROMPTS[:1])
