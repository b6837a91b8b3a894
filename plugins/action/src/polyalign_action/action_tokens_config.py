"""What a recipe can set about action tokens. Light: no torch here."""

from __future__ import annotations

from pydantic import Field, model_validator

from polyalign.policies.config import PretrainedConfig

FRESH = "fresh:"


class ActionTokensConfig(PretrainedConfig):
    """A causal language model that acts: observations and actions are words of its vocabulary.

    ``base``: as for every language model, or ``fresh:LAYERSxWIDTH``, a Llama of that size over bytes with random weights.
    """

    environment: str = Field(description="gymnasium id whose spaces the policy has; prompts name what is played")
    bins: int = Field(256, gt=1, description="words for each number of an action")
    observation_bins: int = Field(1024, gt=1, description="words for each observed number")
    low: tuple[float, ...] = Field((), description="where the bins of each number begin; none: at the space's bounds")
    high: tuple[float, ...] = Field((), description="where they end; `action_bins.quantile_range` reads both off data")
    value_head: bool = Field(False, description="add a linear value head for actor-critic objectives")
    max_steps: int | None = Field(None, gt=0, description="cut episodes there, if the environment's own limit is not shorter")

    @model_validator(mode="after")
    def _both_ends(self) -> ActionTokensConfig:
        if len(self.low) != len(self.high) or any(low >= high for low, high in zip(self.low, self.high)):
            raise ValueError(f"low={self.low} and high={self.high} must give each number of an action a range")
        return self
