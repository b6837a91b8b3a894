"""A reward by rule: does the picture show the colours that its prompt names?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from polyalign.rewards.base import Judged, Reward
from polyalign_image.config import ColourRuleConfig
from polyalign_image.judged import caption_of, pictures_of
from polyalign_image.palette import colour_shares, colours_named


class ColourRule(Reward):
    """From 0 to 1: how much of the picture shows the n colours asked for, each counted up to 1/n of it.

    The colours are the configured one, or those the prompt names (`palette.colours_named`). "A red rose": the share of red.
    "A red and white flag": 1 only if half is red and half is white. White pixels are background and left out, unless
    white is asked for; a picture of background alone scores 0.
    """

    name = "colour_rule"

    def __init__(self, config: ColourRuleConfig) -> None:
        self.config = config

    def score(self, items: Sequence[Judged]) -> list[float]:
        fixed = (self.config.colour,) if self.config.colour else None
        wanted = [fixed or colours_named(caption_of(item.prompt)) for item in items]
        return [self._score(picture, colours) for picture, colours in zip(pictures_of(items), wanted, strict=True)]

    def _score(self, picture: Image, wanted: tuple[str, ...]) -> float:
        if not wanted:
            return self.config.no_colour_named
        shares = colour_shares(np.asarray(picture))
        if self.config.ignore_white and "white" not in wanted:
            shares.pop("white")
        total = sum(shares.values())
        if total == 0:
            return 0.0
        return sum(min(shares[colour] / total, 1 / len(wanted)) for colour in wanted)
