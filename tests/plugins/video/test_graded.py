"""Clips made worse in steps: each step is farther from the clip than the one before."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from polyalign_video.clip import Clip
from polyalign_video.graded import DAMAGES, GRADES, Damage, graded
from polyalign_video.modality import VideoModality


def textured(frames: int = 16, side: int = 64) -> Clip:
    """Blurred grey noise that slides by two pixels a frame."""
    noise = np.random.default_rng(0).normal(128, 90, (side, side + 2 * frames, 1)).repeat(3, 2)
    smooth = sum(np.roll(noise, (y, x), (0, 1)) for y in range(3) for x in range(3)) / 9
    wide = smooth.clip(0, 255).astype(np.uint8)
    return Clip(np.stack([wide[:, 2 * number : 2 * number + side] for number in range(frames)]), 8.0)


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_grade_is_worse_than_the_one_before(damage: Damage) -> None:
    clip = textured()
    files = graded(clip, damage)
    assert len(files) == len(GRADES[damage]) and files == graded(clip, damage)
    errors = [np.abs(VideoModality().decode(data).frames.astype(float) - clip.frames).mean() for data in files]
    assert errors == sorted(errors) and errors[0] < 6 and all(after > 1.2 * before for before, after in pairwise(errors))


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="63 x 64 pixels: both sides have to be even"):
        graded(Clip(textured().frames[:, :, :63], 8.0), "flicker")
