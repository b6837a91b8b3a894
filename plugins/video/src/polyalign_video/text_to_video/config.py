"""Settings of the text-to-video policy. Light: no torch here."""

from __future__ import annotations

from pydantic import Field

from polyalign.policies.pipelines.config import PipelineConfig


class TextToVideoConfig(PipelineConfig):
    """A text-to-video pipeline to align."""

    frames: int = Field(gt=0, description="frames of a clip; Wan and LTX want one more than a multiple of what the VAE joins")
    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    fps: float = Field(8.0, gt=0, description="at which drawn clips play; clips of the data keep their duration")
    per_frame: bool = Field(
        False, description="a decision per latent frame, for labels in time (dense_dpo); else a clip is one decision"
    )
    encode_batch: int = Field(4, gt=0, description="clips or captions per pass through the frozen encoders")
