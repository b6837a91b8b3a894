"""What recipes can set about policies that make sound. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyalign.policies.config import LoraConfig
from polyalign.training.config import Config


class CodecTokensConfig(Config):
    """A MusicGen-like model: text to the codes of a neural codec. beta goes with the sum of log-probabilities over all codes."""

    base: str = Field(min_length=1, description="folder or hub id of a MusicGen, zoo:NAME or asset:NAME")
    max_seconds: float = Field(30.0, gt=0, description="longer responses are cut there")
    lora: LoraConfig | None = Field(None, description="train LoRA layers of the decoder only; none: train the whole decoder")
    dtype: Literal["float32", "bfloat16"] = "float32"
    value_head: bool = Field(False, description="add a value per code, for actor-critic objectives")
    head_chunk: int = Field(8192, gt=0, description="codes that meet the vocabulary at once")
    encode_batch: int = Field(16, gt=0, description="clips or captions between two saves of the feature cache")


class CodecDecodingConfig(Config):
    """How clips are drawn. ``temperature`` 0 takes the likeliest code; ``guidance`` away from the empty prompt is part of the
    scored distribution, so that rollouts can be scored again."""

    seconds: float = Field(8.0, gt=0, description="length of each clip, rounded to whole frames of the codec")
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest codes that together reach it")
    guidance: float = Field(1.0, ge=1, description="1: none; MusicGen's own default is 3")
    batch_size: int = Field(32, gt=0, description="clips drawn at once; it changes speed and memory only")
