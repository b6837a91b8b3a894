"""What a recipe can set about rewards that are made of rewards, and about judges. Light: no torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from polyalign.slots import PluginSlot
from polyalign.training.config import Config


class RewardSlot(PluginSlot):
    """A reward: its name, and its own options beside it."""

    kind = "rewards"


class RewardTerm(RewardSlot):
    """One reward among others: its name, its weight, and its own options beside them."""

    weight: float = Field(default=1.0, allow_inf_nan=False, description="factor on this reward; negative: a penalty")


class CombinedConfig(Config):
    terms: tuple[RewardTerm, ...] = Field(min_length=1, description="rewards, each {name, weight, and its own options}")


class WeightedConfig(CombinedConfig):
    """The sum of weight * reward."""


class MinimumConfig(CombinedConfig):
    """The least of weight * reward: a response is as good as its worst side."""


class ProductConfig(CombinedConfig):
    """The product of reward ** weight: one reward of 0 makes the whole 0. Rewards below 0 are an error."""

    @model_validator(mode="after")
    def _exponents(self) -> ProductConfig:
        for term in self.terms:
            if term.weight <= 0:
                raise ValueError(f"{term.name!r} has weight {term.weight:g}; in a product weights are exponents, above 0")
        return self


class EnsembleConfig(CombinedConfig):
    """mean - penalty * standard deviation over the terms, by weight: where they disagree, nobody is believed."""

    penalty: float = Field(1.0, ge=0, description="how many standard deviations of disagreement are taken off the mean")
    terms: tuple[RewardTerm, ...] = Field(min_length=2, description="rewards, each {name, weight, and its own options}")

    @model_validator(mode="after")
    def _positive(self) -> EnsembleConfig:
        for term in self.terms:
            if term.weight <= 0:
                raise ValueError(f"{term.name!r} has weight {term.weight:g}; in an ensemble weights must be above 0")
        return self


class ThresholdConfig(Config):
    """``above`` where the reward reaches ``at``, else ``below``."""

    reward: RewardSlot
    at: float = Field(description="the least value that passes")
    above: float | None = Field(1.0, description="value of what passes; null: the reward itself")
    below: float | None = Field(0.0, description="value of what does not; null: the reward itself")


class NormalisedConfig(Config):
    """(reward - mean) / standard deviation, over siblings, over everything seen so far, or fixed."""

    reward: RewardSlot
    by: Literal["group", "running", "fixed"] = Field(
        "group", description="group: responses to one prompt in one call; running: all so far, these included; fixed: as given"
    )
    mean: float = Field(0.0, description="of by: fixed")
    std: float = Field(1.0, gt=0, description="of by: fixed")
    centre: bool = Field(True, description="false: divide only, so that the sign stays")
    clip: float | None = Field(None, gt=0, description="cut the result off at this far from 0")

    @model_validator(mode="after")
    def _fixed_only(self) -> NormalisedConfig:
        given = self.model_fields_set & {"mean", "std"}
        if self.by != "fixed" and any(getattr(self, key) != NormalisedConfig.model_fields[key].default for key in given):
            raise ValueError(f"mean and std are measured with by: {self.by}; leave them out, or set by: fixed")
        return self


class FunctionConfig(Config):
    """A user's own function; its slot's name says which."""

    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")
