"""What recipes can set about policies that make sound. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyalign.policies.config import LoraConfig
from polyalign.policies.pipelines.config import PipelineConfig
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


class TextToAudioConfig(PipelineConfig):
    """A diffusers pipeline that makes sound (StableAudioPipeline, AudioLDM2Pipeline)."""

    seconds: float | None = Field(None, gt=0, description="length of every clip; none: what the pipeline was made for")


class DnsMosConfig(Config):
    """The ``dnsmos`` reward."""

    aspect: Literal["signal", "background", "overall"] = "overall"
    windows: int = Field(8, gt=0, description="of a long clip, so many windows of 9 s are judged at most")


class ClapConfig(Config):
    """The ``clap`` encoder and reward. ``model``: a folder, zoo:NAME or a model hub id of a ClapModel."""

    model: str = "laion/clap-htsat-unfused"
    device: str | None = Field(None, description="none: the first GPU if there is one, else the CPU")
    batch_size: int = Field(16, gt=0)


class TuneRuleConfig(Config):
    """The ``tune_rule`` reward. Without ``words`` it listens for those of the prompt."""

    words: str | None = Field(None, description="what to hear whatever the prompt asks: rising, falling, low, high, slow, fast")
    boundary: float = Field(340.0, gt=0, description="Hz; notes below are low")
    slow: float = Field(0.22, gt=0, description="seconds from note to note; less is fast")
