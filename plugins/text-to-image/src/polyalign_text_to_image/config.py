"""Settings of the text-to-image policy. Light: no torch here."""

from __future__ import annotations

from pydantic import Field

from polyalign.policies.pipelines.config import PipelineConfig


class TextToImageConfig(PipelineConfig):
    """A text-to-image pipeline to align."""

    resolution: int | None = Field(None, gt=0, description="pixels per side; none: what the pipeline was made for")
    max_sequence_length: int | None = Field(
        None, ge=0, description="T5 tokens of a flow transformer, zeros where it has no T5; none: the pipeline's default"
    )
