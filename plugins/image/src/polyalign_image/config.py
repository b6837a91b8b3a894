"""Configuration of the image plugin's encoders, rewards and judges. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from polyalign.policies.config import MediaTokensConfig
from polyalign.training.config import Config, Slot
from polyalign_image.palette import PALETTE


class VisionLanguageConfig(MediaTokensConfig):
    """A transformers image-text-to-text model."""

    min_pixels: int | None = Field(None, gt=0, description="pictures are scaled up to this, where the processor scales freely")
    max_pixels: int | None = Field(None, gt=0, description="pictures are scaled down to this, where the processor scales freely")


class AlignmentLevelsConfig(VisionLanguageConfig):
    """AlignGPT's two stages. Both keep the tower frozen; ``pretrain`` keeps the language model frozen too."""

    stage: Literal["pretrain", "tune"] = "tune"
    levels: int = Field(8, ge=2, description="alignment levels; the last is the best and global to all tasks")
    mixture: Literal["gate", "mean", "local", "global", "fixed"] = Field(
        "gate", description="what tuning inserts: global + gated local levels (gate), global + their mean, or one of the parts"
    )
    fixed_level: int = Field(0, ge=0, description="the level of mixture: fixed")
    gate_tokens: int | None = Field(None, gt=0, description="width of the gate's input; none: the visual tokens of one picture")
    gate_hidden: int = Field(256, gt=0)
    scale_gate: bool = Field(False, description="divide the gate's inputs by sqrt(width): large models saturate it otherwise")

    @model_validator(mode="after")
    def _stage_fits(self) -> AlignmentLevelsConfig:
        if self.fixed_level >= self.levels:
            raise ValueError(f"fixed_level={self.fixed_level} is not one of levels 0 to {self.levels - 1}")
        if self.stage == "pretrain" and (self.lora is not None or self.language != "frozen"):
            raise ValueError("the pretrain stage trains projector and levels only; set language: frozen and leave lora out")
        return self


def _known_colour(value: str) -> str:
    if value not in PALETTE:
        raise ValueError(f"unknown colour {value!r}; known: {', '.join(PALETTE)}")
    return value


class ClipConfig(Config):
    """``model``: a folder, ``zoo:NAME`` or a model hub id, in the layout of transformers or of open_clip."""

    model: str = "zoo:tiny-clip"
    layout: Literal["auto", "transformers", "open_clip"] = "auto"
    processor: str | None = Field(None, description="where tokenizer and picture processor lie, if not beside the model")
    device: str | None = Field(None, description="none: the first GPU if there is one, else the CPU")
    batch_size: int = Field(32, gt=0)


class EfficientNetConfig(Config):
    """``model``: a folder with the weights file of EfficientNet-Lite0, or ``asset:NAME``."""

    model: str = "asset:efficientnet-lite0"
    size: int = Field(224, ge=32, description="pictures are scaled to this many pixels square; the network was trained at 224")
    features: Literal["final", "texture"] = Field(
        "final",
        description="final: the 1,280 features before the classifier (what is shown); "
        "texture: how channels of the early stages go together (how it is drawn)",
    )
    device: str | None = Field(None, description="none: the first GPU if there is one, else the CPU")
    batch_size: int = Field(32, gt=0)


class ClipScoreConfig(ClipConfig):
    weight: float = Field(1.0, gt=0, description="1: the cosine as most code reports it; 2.5: as published")


class PickScoreConfig(ClipConfig):
    model: str = "yuvalkirstain/PickScore_v1"
    layout: Literal["auto", "transformers", "open_clip"] = "transformers"
    processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class TintConfig(Config):
    """Without ``colour``, it is the first that the prompt names."""

    colour: str | None = Field(None, description=f"one of {', '.join(PALETTE)}")

    @field_validator("colour")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else _known_colour(value)


class ColourRuleConfig(TintConfig):
    """Without ``colour``, the colours are those that the prompt names."""

    no_colour_named: float = Field(0.5, ge=0, le=1, description="the reward where the prompt names no colour")
    ignore_white: bool = Field(True, description="leave the white background out of the share, unless white is asked for")


class ImageSizeConfig(Config):
    """Limits in pixels, and the ratio of width to height; at least one of them."""

    min_width: int | None = Field(None, gt=0)
    max_width: int | None = Field(None, gt=0)
    min_height: int | None = Field(None, gt=0)
    max_height: int | None = Field(None, gt=0)
    ratio: float | None = Field(None, gt=0, description="width / height")
    ratio_tolerance: float = Field(0.01, ge=0, description="share by which the ratio may be off")

    @model_validator(mode="after")
    def _some_limit(self) -> ImageSizeConfig:
        limits = (self.min_width, self.max_width, self.min_height, self.max_height, self.ratio)
        if all(limit is None for limit in limits):
            raise ValueError("give at least one of min_width, max_width, min_height, max_height and ratio")
        return self


class DominantColourConfig(Config):
    colour: str = Field(description=f"one of {', '.join(PALETTE)}")
    share: float = Field(0.0, ge=0, le=1, description="the least share of the picture")
    thing: bool = Field(False, description="leave out a white background, and measure the thing before it")

    @field_validator("colour")
    @classmethod
    def _in_palette(cls, value: str) -> str:
        return _known_colour(value)


class OcrTextConfig(Config):
    text: str | None = Field(None, min_length=1, description="what should be read; none: what the prompt has in quotation marks")
    shorter_side: int = Field(256, gt=0, description="smaller pictures are scaled up to this many pixels before reading")


class StyleRateConfig(Config):
    """A judge of style. ``encoder`` should know nothing of the policy. The classifier is fitted on the preferred and rejected
    pictures of the ``fit`` split; its own accuracy is measured on those of the ``test`` split."""

    data: str = Field(description="a folder of records, or dataset:NAME")
    encoder: Slot = Slot.model_validate({"name": "efficientnet-lite0", "features": "texture", "size": 128})
    fit: str = "train"
    test: str = "test"
    tags: tuple[str, ...] = Field((), description="use only records that carry all of these tags")
    limit: int | None = Field(None, gt=0, description="fit on only so many pairs, drawn from all over the fit split")
    softened: int = Field(1, ge=0, description="softened copies of each picture to fit on besides the sharp one")
    autoencoder: str | None = Field(
        None,
        description="of a latent diffusion policy (its pipeline, zoo:NAME or hub id): fit on what it makes of the pictures too",
    )
    c: float = Field(0.03, gt=0, description="scikit-learn's C of the logistic regression: smaller is a stronger penalty")
    seed: int = 0


class CaptionRetrievalConfig(Config):
    """A judge of content. ``encoder`` embeds pictures and text, and should not be the policy's own text encoder."""

    data: str = Field(description="a folder of records, or dataset:NAME: where the captions of the pool come from")
    encoder: Slot = Slot.model_validate({"name": "clip", "model": "zoo:tiny-clip"})
    split: str = "test"
    tags: tuple[str, ...] = Field((), description="use only records that carry all of these tags")
    k: int = Field(5, gt=0, description="the own caption counts as found among this many")
    pool: int = Field(100, gt=1, description="captions to choose from, the own one included")
    seed: int = 0

    @model_validator(mode="after")
    def _can_fail(self) -> CaptionRetrievalConfig:
        if self.k >= self.pool:
            raise ValueError(f"k={self.k} of pool={self.pool} is always found; k must be smaller")
        return self


class AttributeHallucinationConfig(Config):
    """A judge of captions by rule. The truth about each picture stands in the data set, found by the picture's sha256."""

    data: str = Field("dataset:emoji-captions", description="a folder of records, or dataset:NAME, with the true captions")
    captions: str = Field("captions", description="the splits whose names begin with this and a dot hold the true captions")
