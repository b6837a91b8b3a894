"""What a recipe can set about Qwen2.5-Omni. Light: no torch here."""

from __future__ import annotations

from pydantic import Field

from polyalign.policies.config import MediaTokensConfig


class OmniLanguageConfig(MediaTokensConfig):
    """The thinker of Qwen2.5-Omni: it reads sound, pictures, clips and text, and answers in text."""

    frames: int = Field(16, gt=0, description="frames of a clip that are looked at, at most; spread evenly")
    fps: float | None = Field(None, gt=0, description="frames looked at per second of a clip; none: as many as policy.frames")
    min_pixels: int | None = Field(None, gt=0, description="pictures and frames are scaled up to this")
    max_pixels: int | None = Field(None, gt=0, description="pictures and frames are scaled down to this")
