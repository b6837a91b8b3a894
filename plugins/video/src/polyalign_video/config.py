"""Configuration of the video plugin's policies and rewards. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyalign.policies.config import MediaTokensConfig
from polyalign.rewards.config import RewardSlot
from polyalign.rewards.rules.config import RangeConfig
from polyalign.training.config import Config, Slot


class VideoLanguageConfig(MediaTokensConfig):
    """A transformers model that reads clips, pictures and text."""

    frames: int = Field(16, gt=0, description="frames of a clip that are looked at, at most; spread evenly")
    fps: float | None = Field(None, gt=0, description="frames looked at per second of a clip; none: as many as policy.frames")
    min_pixels: int | None = Field(None, gt=0, description="pictures and frames are scaled up to this, where the processor can")
    max_pixels: int | None = Field(None, gt=0, description="pictures and frames are scaled down to this, where the processor can")


class FrameRewardConfig(Config):
    """A reward for pictures, of some frames of a clip."""

    reward: RewardSlot = Field(description="a reward for pictures: its name, and its own options beside it")
    frames: int = Field(4, gt=0, description="frames that are judged, at most; spread evenly")
    attenuation: float = Field(
        0.0, ge=0, description="a frame d places from the middle one weighs exp(-attenuation * d); 0: all frames alike"
    )


class MotionConfig(Config):
    """Without ``move``, it is the one that the prompt names ("moves left", "grows", "stays still")."""

    move: Literal["left", "right", "up", "down", "grows", "shrinks", "still"] | None = None
    least: float = Field(0.3, gt=0, description="a way that counts in full, in shares of the side (of log size, to grow)")
    no_move_named: float = Field(0.5, ge=0, le=1, description="the reward where the prompt names no move")


class MotionProfileConfig(Config):
    frames: int = Field(8, ge=2, description="frames that are compared, at most; spread evenly")
    side: int = Field(32, ge=4, multiple_of=4, description="clips are scaled to this many pixels square")


class MotionAmountConfig(RangeConfig):
    """Limits of the mean absolute difference of neighbouring frames, pixels on [0, 1]."""


class TemporalConsistencyConfig(Config):
    """``encoder``: compare embeddings by an encoder of pictures; none: pixels."""

    encoder: Slot | None = Field(None, description="an encoder that reads pictures: its name, and its own options beside it")
    least_motion: float = Field(0.0, ge=0, description="clips that change less from frame to frame score 0: frozen ones do")
