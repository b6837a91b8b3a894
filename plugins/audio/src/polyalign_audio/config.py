"""What a recipe can set about policies that listen, and about rewards for what is heard. Light: no torch here."""

from __future__ import annotations

from pydantic import Field, model_validator

from polyalign.policies.config import MediaTokensConfig
from polyalign.training.config import Config


class WhisperConfig(MediaTokensConfig):
    """A speech recogniser of transformers' Whisper class."""

    max_length: int = Field(224, gt=0, description="start tokens and transcript together")
    max_response: int = Field(192, gt=0)
    seconds: int | None = Field(
        None,
        gt=0,
        le=30,
        description="cut the encoder's window to so many seconds; none: as the base has it (30). Saved with the model",
    )
    spoken: str | None = Field(None, description="which language is spoken, for multilingual bases; none: as the base says")

    @model_validator(mode="after")
    def _one_clip_per_row(self) -> WhisperConfig:
        if self.rows == "packed":
            raise ValueError(
                "rows is 'packed', but a row attends to one clip, so prompts cannot share it; use auto, shared or plain"
            )
        return self


class AudioLanguageConfig(MediaTokensConfig):
    """A transformers model that reads clips among text."""


class WordAccuracyConfig(Config):
    """``word_accuracy``: the words of a transcript, or of what a recogniser hears in a clip, against those that are due."""

    answer: str = Field("answer", description="the condition that holds the words")
    recogniser: str = Field(
        "pocketsphinx",
        description="who hears clips: pocketsphinx (polyalign-audio[recognise]), or a Whisper model",
    )
    exact: bool = Field(False, description="1 for all words right and no more, else 0")


class LoudnessConfig(Config):
    """``loudness``: 1 for a clip within the limits, else 0."""

    minimum: float | None = Field(None, ge=0, description="least root mean square; full scale is 1")
    maximum: float | None = Field(None, ge=0, description="greatest root mean square")
    peak: float = Field(1.0, gt=0, description="no sample may be past this")


class PitchConfig(Config):
    """``pitch``: 1 for a clip whose median pitch lies within the limits, else 0."""

    minimum: float | None = Field(None, gt=0, description="Hz")
    maximum: float | None = Field(None, gt=0, description="Hz")
