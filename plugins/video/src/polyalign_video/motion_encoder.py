"""Clips to numbers that tell how they move: what a reward model for motion needs, without weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polyalign.encoders import Encoder
from polyalign_video.clip import Clip, uniform
from polyalign_video.config import MotionProfileConfig

CELLS, LAGS = 4, (1, 2, 3, 4)  # the picture is divided into 4 x 4 cells; frames are compared at these distances
FLOOR = 1e-3  # change below which a cell counts as still, pixels on [0, 1]


class MotionProfile(Encoder):
    """For each of 16 cells: the logarithm of the mean change between frames 1, 2, 3 and 4 apart, and how lopsided the change is
    in time (the third moment of the differences of neighbours over its absolute value: it turns its sign when the clip is
    reversed). 80 numbers, of grey clips of ``frames`` frames and ``side`` pixels square."""

    name = "motion-profile"
    width = CELLS**2 * (len(LAGS) + 1)

    def __init__(self, config: MotionProfileConfig) -> None:
        self.config = config

    def encode_media(self, media: Sequence[Clip]) -> Tensor:
        rows = [self._profile(clip) for clip in media]
        return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, self.width)

    def _profile(self, clip: Clip) -> np.ndarray:
        size = (self.config.side, self.config.side)
        chosen = clip.frames[uniform(len(clip), self.config.frames)]
        small = [Image.fromarray(frame).convert("L").resize(size, Image.Resampling.BOX) for frame in chosen]
        grey = np.stack([np.asarray(frame, dtype=np.float32) for frame in small]) / 255  # [F, S, S]
        changes = [_by_cell(np.abs(grey[lag:] - grey[:-lag])) for lag in LAGS if lag < len(grey)]
        changes += [np.zeros(CELLS**2, np.float32)] * (len(LAGS) - len(changes))
        steps = np.diff(grey, axis=0)
        lopsided = _by_cell(steps**3) / (_by_cell(np.abs(steps) ** 3) + FLOOR**3)
        return np.concatenate([*(np.log(change + FLOOR) for change in changes), lopsided]).astype(np.float32)

    def fingerprint(self) -> str:
        about = f"{CELLS} {LAGS} {FLOOR} {self.config.frames} {self.config.side}"
        return hashlib.blake2b(about.encode(), digest_size=20).hexdigest()

    def content_key(self, medium: Clip) -> str:
        return hashlib.blake2b(medium.frames.tobytes() + str(medium.frames.shape).encode(), digest_size=20).hexdigest()


def _by_cell(values: np.ndarray) -> np.ndarray:
    """Return the mean of ``[F, S, S]`` over time and over each cell, ``[16]``."""
    side = values.shape[1] // CELLS
    if not len(values):
        return np.zeros(CELLS**2, np.float32)
    cells: np.ndarray = values.reshape(len(values), CELLS, side, CELLS, side).mean((0, 2, 4)).ravel()
    return cells
