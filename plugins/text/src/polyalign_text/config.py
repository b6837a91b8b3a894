"""What a recipe can set about a text policy and its rewards. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyalign.policies.config import PretrainedConfig
from polyalign.training.config import Config


class TextConfig(PretrainedConfig):
    """A transformers causal language model."""

    value_head: bool = Field(False, description="add a linear value head over hidden states, for actor-critic objectives")


class ConstraintsConfig(Config):
    """The ``constraints`` reward. ``share``: the share of constraints that hold; ``all``: 1 if every one holds, else 0."""

    credit: Literal["share", "all"] = "share"
