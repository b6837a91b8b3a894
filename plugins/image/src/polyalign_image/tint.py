"""A reward by rule with a gradient: how near the coloured part of a picture comes to a colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from polyalign.records.schema import Message
from polyalign.rewards.base import Judged, Reward
from polyalign_image.config import TintConfig
from polyalign_image.judged import caption_of, pictures_of
from polyalign_image.palette import TYPICAL, colours_named

LEAST_WEIGHT = 1e-3  # of a white pixel, so that an all-white picture has a score, a low one


class Tint(Reward):
    """From 0 to 1: one minus the mean distance of pixels to the colour, in the mean over red, green and blue.

    A pixel weighs by how far it is from white (1 minus its least channel), so that a white background says nothing. The
    colour is the configured one, or the first that the prompt names (`palette.colours_named`); a prompt that names none
    scores 0.5. `colour_rule` judges the same thing by the names of pixels, and has no gradient. As tensors, clips
    ``[N, 3, F, H, W]`` are judged like one picture of all their frames.
    """

    name = "tint"

    def __init__(self, config: TintConfig) -> None:
        self.config = config

    def score(self, items: Sequence[Judged]) -> list[float]:
        pictures = [torch.from_numpy(np.array(picture, dtype=np.float32) / 255) for picture in pictures_of(items)]
        return [
            float(self.on_tensors(picture.permute(2, 0, 1)[None], [item.prompt])[0])
            for picture, item in zip(pictures, items, strict=True)
        ]

    def on_tensors(self, media: Tensor, prompts: Sequence[tuple[Message, ...]]) -> Tensor:
        wanted = [self._colour(prompt) for prompt in prompts]
        target = torch.tensor([TYPICAL[colour or "white"] for colour in wanted], device=media.device) / 255
        media = media.flatten(3)  # [N, 3, F, H * W]; a picture stays as it is
        distance = (media - target[:, :, None, None]).abs().mean(1)  # [N, H, W]
        weight = 1 - media.amin(1) + LEAST_WEIGHT
        near = 1 - (weight * distance).sum((1, 2)) / weight.sum((1, 2))
        named = torch.tensor([colour is not None for colour in wanted], device=media.device)
        return torch.where(named, near, 0.5)

    def _colour(self, prompt: Sequence[Message]) -> str | None:
        return self.config.colour or next(iter(colours_named(caption_of(prompt))), None)
