"""Configuration of encoder features. Light: no torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from polyalign.training.config import Config, Slot


class EncoderFeaturesConfig(Config):
    encoder: Slot = Field(
        default=Slot(name="hashed-words"),
        description="a frozen encoder by name, with its own options (`polyalign list encoders`)",
    )
    features: Literal["interaction", "response"] = Field(
        default="interaction",
        description="interaction: response, prompt and their product side by side, so that even a linear head sees how they go "
        "together; response: the response's embedding alone, for cosines with the prompt's and for what no prompt decides",
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_text_is_a_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("encoder"), str):
            return {**given, "encoder": {"name": given["encoder"]}}
        return given


class HashedWordsConfig(Config):
    width: int = Field(256, gt=0, description="columns that words are hashed into")
    pairs: bool = Field(True, description="count pairs of neighbouring words too")
