"""Configuration of the listwise objectives. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyalign.objectives.config import ObjectiveConfig
from polyalign.objectives.implicit_reward_config import ImplicitRewardConfig


class PlackettLuceConfig(ImplicitRewardConfig):
    ties: Literal["unordered", "equal"] = Field(
        default="unordered",
        description="what a tie says: nothing about the order of the tied (their orders' probabilities are summed), or that they "
        "are equally good (the loss is averaged over their orders, which draws them together)",
    )


class PROConfig(ObjectiveConfig):
    temperatures: Literal["auto", "unit"] = Field(
        default="auto",
        description="differences of mean ratings (on 0 to 1) where a whole ranking is rated, else 1; unit: always 1",
    )
    temperature_scale: float = Field(
        default=1.0, gt=0, description="factor on every temperature: the scale of rewards; thousands for mean denoising errors"
    )
    sft_weight: float = Field(default=0.05, ge=0, description="weight of the best response's summed negative log-probability")
