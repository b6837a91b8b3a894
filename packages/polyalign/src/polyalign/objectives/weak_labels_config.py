"""Configuration of the weak-to-strong objectives. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyalign.objectives.implicit_reward_config import ImplicitRewardConfig


class WeakXentConfig(ImplicitRewardConfig):
    labels: Literal["strength", "ratings"] = Field(
        default="strength",
        description="what the weak model's log-odds of its preference are: the comparison's strength, or the difference of the "
        "two ratings (on 0 to 1)",
    )
    label_scale: float = Field(default=1.0, gt=0, description="factor on strength or difference of ratings that makes log-odds")

    @property
    def needs(self) -> frozenset[str]:
        """What these options need of the data, besides preferences."""
        return frozenset({"ratings"} if self.labels == "ratings" else ())


class WeakLogconfConfig(WeakXentConfig):
    confidence: float = Field(default=0.5, ge=0, le=1, description="share of the policy's own hardened labels in the target")
    warmup_steps: int = Field(
        default=0, ge=0, description="steps over which that share grows from 0; a tenth of the run in the paper"
    )


class WeakProductConfig(WeakXentConfig):
    label_power: float = Field(default=1.0, gt=0, description="exponent of the weak label")
    policy_power: float = Field(default=1.0, ge=0, description="exponent of the policy's own probability; below 1 it settles")
