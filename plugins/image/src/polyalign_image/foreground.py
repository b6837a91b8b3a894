"""The colours of a thing drawn on white, its background left out. Numpy is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyalign_image.palette import colour_shares

if TYPE_CHECKING:
    import numpy as np

SECOND_FROM = 0.2  # share from which a second colour is one of those that mostly cover the thing
SHOWN_FROM = 0.05  # share from which a colour is there at all, rather than a blend along a line


def main_colours(rgb: np.ndarray) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the one or two palette colours that cover most of the thing, and the others that it shows, by falling share.

    ``rgb``: ``[H, W, 3]`` uint8. White is a colour like any other here: the background does not count.
    """
    shares = foreground_shares(rgb)
    first, *others = sorted((colour for colour in shares if shares[colour] >= SHOWN_FROM), key=lambda colour: -shares[colour])
    main = (first, *others[:1]) if others and shares[others[0]] >= SECOND_FROM else (first,)
    return main, tuple(others[len(main) - 1 :])


def foreground_shares(rgb: np.ndarray) -> dict[str, float]:
    """Return the share of each palette colour among the pixels of the thing; they add to 1. ``rgb``: ``[H, W, 3]`` uint8.

    Background is pure white that reaches the border. The pixels next to it are left out too: they are blends with white
    and would make everything partly white. A picture with nothing else is measured whole.
    """
    import numpy as np

    inside = ~_grown(_background(rgb), diagonally=True)
    pixels = rgb[inside] if inside.any() else rgb.reshape(-1, 3)
    return colour_shares(pixels[np.newaxis])


def _background(rgb: np.ndarray) -> np.ndarray:
    import numpy as np

    white = np.pad((rgb == 255).all(-1), 1, constant_values=True)  # a white frame joins what reaches the border
    reached = np.zeros_like(white)
    reached[0, 0] = True
    while not np.array_equal(grown := _grown(reached) & white, reached):
        reached = grown
    return reached[1:-1, 1:-1]


def _grown(mask: np.ndarray, diagonally: bool = False) -> np.ndarray:
    """The mask and its neighbours above, below, left and right; ``diagonally``: also those at the corners."""
    import numpy as np

    padded = np.pad(mask, 1)
    upright = padded[:-2] | padded[1:-1] | padded[2:]  # [H, W + 2]
    if diagonally:
        grown: np.ndarray = upright[:, :-2] | upright[:, 1:-1] | upright[:, 2:]
        return grown
    grown = upright[:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return grown
