"""Makes a sharp picture as soft as a generated one, so that a judge does not take softness for style."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from PIL.Image import Resampling

from polyalign.randomness import keyed_seed

BLUR = (0.3, 0.9)  # radius in pixels
SHRINK = (0.56, 1.0)  # scaled down to this share of the side and up again
NOISE = (0.0, 6.0)  # standard deviation, of 255


def soften(picture: Image.Image, *key: str | int) -> Image.Image:
    """Return a blurred, resampled, slightly noisy copy of an RGB picture: what a small autoencoder does to it.

    How much of each is drawn from the key: the same key gives the same copy.
    """
    rng = np.random.default_rng(keyed_seed("soften", *key))
    blurred = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR)))
    share = rng.uniform(*SHRINK)
    small = blurred.resize([max(1, round(side * share)) for side in picture.size], Resampling.BILINEAR)
    pixels = np.asarray(small.resize(picture.size, Resampling.BICUBIC), float)
    noisy = pixels + rng.normal(0, rng.uniform(*NOISE), pixels.shape)
    return Image.fromarray(np.clip(noisy.round(), 0, 255).astype(np.uint8))
