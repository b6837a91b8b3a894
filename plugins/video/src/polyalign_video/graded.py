"""A clip made worse in known steps: quality preferences that need nobody's opinion."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from polyalign_video.clip import Clip
from polyalign_video.modality import write_with

Damage = Literal["compressed", "dropped", "flicker"]
DAMAGES: tuple[Damage, ...] = get_args(Damage)
GRADES: dict[Damage, tuple[float, ...]] = {  # from the best to the worst; each list starts with what changes nothing
    "compressed": (14, 28, 37, 46),  # constant rate factor of H.264
    "dropped": (1, 2, 4, 8),  # every so many frames one is kept, and shown until the next
    "flicker": (0.0, 0.1, 0.25, 0.5),  # every second frame is darker by this share
}


def graded(clip: Clip, damage: Damage) -> list[bytes]:
    """Return the clip as MP4 files, from the best to the worst. Raises `ValueError` for odd sizes, which H.264 halves."""
    if any(side % 2 for side in clip.frames.shape[1:3]):
        raise ValueError(f"frames of {clip.frames.shape[2]} x {clip.frames.shape[1]} pixels: both sides have to be even")
    if damage == "compressed":
        return [_written(clip, grade) for grade in GRADES[damage]]
    best = GRADES["compressed"][0]
    return [_written(_damaged(clip, damage, grade), best) for grade in GRADES[damage]]


def _damaged(clip: Clip, damage: Damage, grade: float) -> Clip:
    every = np.arange(len(clip))
    if damage == "dropped":
        return Clip(clip.frames[every // int(grade) * int(grade)], clip.fps)
    light = np.where(every % 2, 1 - grade, 1.0)[:, None, None, None]
    return Clip((clip.frames * light).round().astype(np.uint8), clip.fps)


def _written(clip: Clip, rate_factor: float) -> bytes:
    return write_with("libx264", clip, "mp4", {"crf": str(rate_factor), "preset": "medium"})
