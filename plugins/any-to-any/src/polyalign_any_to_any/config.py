"""What a recipe can set about any-to-any policies. Light: no torch here."""

from __future__ import annotations

from pydantic import Field

from polyalign.policies.config import PretrainedConfig
from polyalign.training.config import Config, Slot


class AnyToAnyConfig(PretrainedConfig):
    """A causal language model with media tokenizers: those inside its folder, and those that ``media`` names."""

    media: dict[str, str] = Field(
        default_factory=dict, description="modality: folder of its media tokenizer; a model's own need not be named"
    )


class PictureTokensConfig(PretrainedConfig):
    """Chameleon, Emu3 or Janus."""

    side: int | None = Field(
        None, gt=0, description="pictures are made squares of so many pixels; none: what the model is made for"
    )


class RightThingConfig(Config):
    """Who judges whether a response is of the right thing."""

    model: str = Field("zoo:tiny-any", description="a folder, or zoo:NAME, whose judge/ folder hears spoken words")
    encoder: Slot = Field(
        Slot.model_validate({"name": "clip", "model": "zoo:tiny-clip"}), description="embeds pictures and the names of things"
    )
