"""Twelve colour names: which words mean them, and which pixels show them. Every pixel has exactly one name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PALETTE = ("black", "grey", "white", "red", "orange", "brown", "yellow", "green", "cyan", "blue", "purple", "pink")

OTHER_WORDS = {
    "gray": "grey",
    "silver": "grey",
    "crimson": "red",
    "scarlet": "red",
    "gold": "yellow",
    "golden": "yellow",
    "turquoise": "cyan",
    "teal": "cyan",
    "violet": "purple",
    "magenta": "pink",
}

# A colour that everyone calls by the name, as red, green, blue in 0 to 255.
TYPICAL = {
    "black": (0, 0, 0), "grey": (128, 128, 128), "white": (255, 255, 255), "red": (220, 20, 30), "orange": (250, 140, 20),
    "brown": (130, 75, 35), "yellow": (255, 215, 40), "green": (40, 150, 50), "cyan": (60, 200, 200), "blue": (40, 90, 220),
    "purple": (130, 50, 170), "pink": (250, 130, 180),
}  # fmt: skip

# Upper ends of hue in degrees; what lies past the last one is red again.
HUES = ((10, "red"), (40, "orange"), (70, "yellow"), (165, "green"), (195, "cyan"), (255, "blue"), (345, "purple"), (360, "red"))
BLACK_BELOW = 0.25  # value
GREY_BELOW = (0.15, 0.12)  # saturation, or chroma: a dark pixel with little chroma looks grey however saturated it is
WHITE_FROM = 0.85  # value of a grey pixel
BROWN_HUES, BROWN_BELOW = (10, 50), 0.78  # hues and value: a dark orange or amber is brown
PINK_HUE, PINK_FROM = 285, 0.7  # hue and value: a light purple is pink
PALE_RED = (0.5, 0.75)  # saturation below, value from: a pale red is pink


def colours_named(text: str) -> tuple[str, ...]:
    """Return the palette colours that the text names as whole words, each once, in order: "a red-gold fish" -> red, yellow."""
    words = re.findall(r"[a-z]+", text.lower())
    named = (OTHER_WORDS.get(word, word) for word in words)
    return tuple(dict.fromkeys(word for word in named if word in PALETTE))


def colour_shares(rgb: np.ndarray) -> dict[str, float]:
    """Return for each colour the share of pixels that show it; they add to 1. ``rgb``: ``[H, W, 3]`` uint8."""
    names = name_pixels(rgb)
    return {colour: float((names == index).mean()) for index, colour in enumerate(PALETTE)}


def name_pixels(rgb: np.ndarray) -> np.ndarray:
    """Return ``[H, W]``, the index in `PALETTE` of each pixel, from its hue (degrees), saturation and value (0 to 1)."""
    import numpy as np

    pixels = rgb.astype(np.float64) / 255
    value, least = pixels.max(-1), pixels.min(-1)
    chroma = value - least
    saturation = np.divide(chroma, value, out=np.zeros_like(value), where=value > 0)
    hue = _hue(pixels, value, chroma)

    limits = np.array([limit for limit, _ in HUES])
    by_hue = np.array([PALETTE.index(name) for _, name in HUES])
    names = by_hue[np.clip(np.searchsorted(limits, hue, side="right"), 0, len(HUES) - 1)]

    def rename(where: np.ndarray, colour: str) -> None:
        names[where] = PALETTE.index(colour)

    red, purple = (names == PALETTE.index(colour) for colour in ("red", "purple"))
    grey = (saturation < GREY_BELOW[0]) | (chroma < GREY_BELOW[1])
    rename((hue >= BROWN_HUES[0]) & (hue < BROWN_HUES[1]) & (value < BROWN_BELOW), "brown")
    rename(purple & (hue >= PINK_HUE) & (value >= PINK_FROM), "pink")
    rename(red & (saturation < PALE_RED[0]) & (value >= PALE_RED[1]), "pink")
    rename(grey, "grey")
    rename(grey & (value >= WHITE_FROM), "white")
    rename(value < BLACK_BELOW, "black")
    return names


def _hue(pixels: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """The angle on the colour hexagon, in [0, 360); 0 where there is no chroma (Smith, SIGGRAPH 1978)."""
    import numpy as np

    red, green, blue = np.moveaxis(pixels, -1, 0)
    divisor = np.where(chroma > 0, chroma, 1.0)
    from_green = np.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    sextant = np.where(value == red, ((green - blue) / divisor) % 6, from_green)
    return np.where(chroma > 0, 60 * sextant, 0.0)
