"""What a recipe can set about a text policy. Light: no torch here."""

from __future__ import annotations

from pydantic import Field

from polyalign.policies.config import PretrainedConfig


class TextConfig(PretrainedConfig):
    """A transformers causal language model."""

    value_head: bool = Field(False, description="add a linear value head over hidden states, for actor-critic objectives")
