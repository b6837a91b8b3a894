"""Configuration of the objectives that learn from the policy's own responses. Light: no torch here.

Each named method is `PolicyGradientConfig` with other defaults; every switch works with every other.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from polyalign.objectives.config import DPOConfig
from polyalign.training.config import Config

Advantage = Literal["group", "leave_one_out", "returns", "gae"]
Scale = Literal["group", "batch", "none"]
Ratio = Literal["token", "sequence", "product"]
Average = Literal["sequence", "token", "constant"]
Estimator = Literal["k1", "k2", "k3"]


class PolicyGradientConfig(Config):
    """``surrogate``: "clip" is PPO's pessimistic minimum, "weight" multiplies the log-probability by a capped ratio (CISPO)."""

    surrogate: ClassVar[Literal["clip", "weight"]] = "clip"
    advantage: Advantage = Field(
        default="group",
        description="group: reward minus the mean of its prompt's responses; leave_one_out: minus the mean of the others; "
        "returns: reward still to come, per decision; gae: the same against a value head",
    )
    scale: Scale = Field(
        default="group", description="divide advantages by a standard deviation: of the prompt's rewards, or of the whole round"
    )
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount per decision, of returns and gae")
    ratio: Ratio = Field(
        default="token",
        description="new over old probability: of each decision, the geometric mean over a response, or of the whole response",
    )
    clip_low: float = Field(default=0.2, ge=0, description="the ratio counts down to 1 - clip_low")
    clip_high: float = Field(default=0.2, gt=0, description="the ratio counts up to 1 + clip_high")
    dual_clip: float | None = Field(
        default=None, gt=1, description="the largest ratio that a negative advantage is multiplied by (arXiv 1912.09729, eq. 5)"
    )
    average: Average = Field(
        default="sequence",
        description="mean over decisions of a response, then over responses; over all decisions of the step; or the sum over "
        "decisions by the longest response allowed, so that length changes no weight",
    )
    kl_weight: float = Field(default=0.0, ge=0, description="price of leaving the reference; 0 needs no reference")
    kl_in: Literal["loss", "reward"] = Field(default="loss", description="add it to the loss, or take it off the reward")
    kl: Estimator = Field(
        default="k3", description="k1: log-ratio; k2: half its square; k3: exp(-x) - 1 + x, never negative (Schulman 2020)"
    )
    kl_unbiased: bool = Field(
        default=True, description="multiply the loss's estimate by the ratio, which makes its gradient that of the divergence"
    )
    entropy_weight: float = Field(default=0.0, ge=0, description="bonus for the mean entropy of decisions, in nats")
    sft_weight: float = Field(default=0.0, ge=0, description="factor on the likelihood of online.demonstrations")

    @model_validator(mode="after")
    def _goes_together(self) -> PolicyGradientConfig:
        if self.scale == "group" and self.advantage != "group":
            raise ValueError(f"scale: group is for advantage: group, not {self.advantage!r}; use batch or none")
        if self.surrogate == "weight" and self.ratio == "product":
            raise ValueError("ratio: product does not go with a weighted log-probability; use token or sequence")
        return self


class GRPOConfig(PolicyGradientConfig):
    """Group Relative Policy Optimization."""


class DrGRPOConfig(PolicyGradientConfig):
    scale: Scale = "none"
    average: Average = "constant"


class BNPOConfig(PolicyGradientConfig):
    average: Average = "token"


class DAPOConfig(PolicyGradientConfig):
    clip_high: float = Field(default=0.28, gt=0, description="clip-higher: rare decisions may grow further than others shrink")
    average: Average = "token"


class GSPOConfig(PolicyGradientConfig):
    ratio: Ratio = "sequence"
    clip_low: float = Field(default=3e-4, ge=0, description="a geometric mean over a response moves far less than a decision")
    clip_high: float = Field(default=4e-4, gt=0)


class CISPOConfig(PolicyGradientConfig):
    surrogate: ClassVar[Literal["clip", "weight"]] = "weight"
    average: Average = "token"
    clip_low: float = Field(default=1.0, ge=0, le=1, description="the weight is at least 1 - clip_low; 1 is no lower bound")
    clip_high: float = Field(default=4.0, gt=0, description="the weight is at most 1 + clip_high; TRL's epsilon_high is this sum")


class RLOOConfig(PolicyGradientConfig):
    advantage: Advantage = "leave_one_out"
    scale: Scale = "none"
    ratio: Ratio = "product"
    kl_weight: float = Field(default=0.05, ge=0)
    kl_in: Literal["loss", "reward"] = "reward"
    kl: Estimator = "k1"


class ReinforcePPConfig(PolicyGradientConfig):
    advantage: Advantage = "returns"
    scale: Scale = "batch"
    average: Average = "token"
    kl_weight: float = Field(default=0.01, ge=0)
    kl_in: Literal["loss", "reward"] = "reward"
    kl: Estimator = "k1"


class PPOConfig(PolicyGradientConfig):
    """Policy and value head learn together; every switch of PPO-max is here, most of them off."""

    advantage: Advantage = "gae"
    scale: Scale = "batch"
    average: Average = "token"
    kl_weight: float = Field(default=0.05, ge=0)
    kl_in: Literal["loss", "reward"] = "reward"
    kl: Estimator = "k1"
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="0: one step ahead; 1: all the reward still to come")
    value_weight: float = Field(default=0.1, gt=0, description="factor on the value head's squared error")
    value_clip: float | None = Field(
        default=0.2, gt=0, description="a value further than this from its old one earns nothing more"
    )
    value_warmup: int = Field(default=0, ge=0, description="first rounds, in which only the value head learns")
    rewards: Literal["raw", "scaled", "normalised"] = Field(
        default="raw", description="scaled: by the standard deviation of all rewards so far; normalised: less their mean too"
    )
    reward_clip: float | None = Field(default=None, gt=0, description="rewards count within plus and minus this, after scaling")
    advantage_clip: float | None = Field(default=None, gt=0, description="advantages count within plus and minus this")

    @model_validator(mode="after")
    def _has_a_critic(self) -> PPOConfig:
        if self.advantage != "gae":
            raise ValueError(f"ppo learns values, which advantage: {self.advantage} would not read; use grpo or reinforce_pp")
        return self


class PPOMaxConfig(PPOConfig):
    rewards: Literal["raw", "scaled", "normalised"] = "normalised"
    reward_clip: float | None = Field(default=0.8, gt=0, description="in standard deviations, the paper tries 0.3 and 0.8")


class OnlineDPOConfig(DPOConfig):
    """DPO on the policy's own responses; ``online.pairs`` says which of them are compared."""
