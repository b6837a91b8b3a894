"""What a recipe can set about a text policy and its rewards. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from polyalign.policies.config import LoraConfig, TokensConfig
from polyalign.training.config import Config


class TextConfig(TokensConfig):
    """A transformers causal language model.

    ``base``: a hub id, a folder, ``zoo:NAME`` or ``asset:NAME``. A LoRA folder is merged into its own base first, so that a
    run can start where another ended. beta of an objective goes with the sum of log-probabilities over the response.
    """

    base: str = Field(min_length=1)
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    chat_template: Literal["auto", "none"] = Field("auto", description="none: prompt + response + end-of-text, for base models")
    lora: LoraConfig | None = None
    value_head: bool = Field(False, description="add a linear value head over hidden states, for actor-critic objectives")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    @model_validator(mode="after")
    def _room_for_the_prompt(self) -> TextConfig:
        if self.max_response >= self.max_length:
            raise ValueError(
                f"max_response={self.max_response} leaves no room for the prompt within max_length={self.max_length}; "
                "lower max_response or raise max_length"
            )
        return self


class ConstraintsConfig(Config):
    """The ``constraints`` reward. ``share``: the share of constraints that hold; ``all``: 1 if every one holds, else 0."""

    credit: Literal["share", "all"] = "share"
