"""Configuration of objectives that only denoising models have, on their own responses. Light: no torch here."""

from __future__ import annotations

from pydantic import Field, model_validator

from polyalign.objectives.online_config import PolicyGradientConfig, Scale
from polyalign.policies.config import SamplerConfig
from polyalign.rewards.config import RewardSlot
from polyalign.training.config import Config


class DiffusionNFTConfig(Config):
    """Responses drawn by ``online.decoding.sampler.kind: ode`` (any solver would do), noised again."""

    beta: float = Field(default=1.0, gt=0, description="how far the two implicit policies lie from the old one; 0.1 is stronger")
    scale: Scale = Field(
        default="batch", description="divide advantages by a standard deviation: of the prompt's rewards, or of the whole round"
    )
    advantage_clip: float = Field(default=5.0, gt=0, description="advantages count within plus and minus this")
    adaptive: bool = Field(
        default=True, description="divide each draw's squared error by its mean absolute error, so that noise levels weigh alike"
    )
    kl_weight: float = Field(default=0.0, ge=0, description="price of leaving the reference's prediction; 1e-4 as published")


class AWMConfig(PolicyGradientConfig):
    """The policy gradient on denoising errors, with the error itself in place of a log-probability."""

    scale: Scale = Field(
        default="batch", description="divide advantages by a standard deviation: of the prompt's rewards, or of the whole round"
    )
    beta: float = Field(default=2.0, gt=0, description="factor on a score, half a squared error: 2 is the matching loss itself")
    clip_low: float = Field(default=1e-4, ge=0, description="with mean errors, a ratio moves far less than a token's")
    clip_high: float = Field(default=1e-4, gt=0, description="the ratio counts up to 1 + clip_high")
    prediction_weight: float = Field(
        default=0.0, ge=0, description="price of leaving the reference's prediction: its mean squared distance"
    )
    old_prediction_weight: float = Field(
        default=0.0, ge=0, description="the same for the predictions of when the round was drawn"
    )

    @model_validator(mode="after")
    def _errors_are_no_likelihoods(self) -> AWMConfig:
        if self.kl_weight or self.entropy_weight:
            raise ValueError(
                "kl_weight and entropy_weight want likelihoods, which denoising errors are not; use prediction_weight"
            )
        return self


class RewardGradientConfig(Config):
    """``reward`` must be differentiable: one that implements ``on_tensors``."""

    reward: RewardSlot | None = Field(default=None, description="what is raised, {name, and its own options}; must be given")
    sampler: SamplerConfig = Field(default=SamplerConfig(steps=20), description="how samples are drawn inside the step")
    ceiling: float | None = Field(
        default=None, description="reward from which a sample teaches nothing more: max(0, ceiling - r)"
    )
    weight: float = Field(default=1.0, gt=0, description="factor on the loss")


class DRaFTConfig(RewardGradientConfig):
    last: int = Field(default=1, gt=0, description="K: sampler steps that keep their gradient; sampler.steps is all (DRaFT)")

    @model_validator(mode="after")
    def _fits(self) -> DRaFTConfig:
        if self.last > self.sampler.steps:
            raise ValueError(f"last={self.last} is more than sampler.steps={self.sampler.steps}")
        return self


class ReFLConfig(RewardGradientConfig):
    sampler: SamplerConfig = Field(default=SamplerConfig(steps=40), description="how samples are drawn up to where they stop")
    late: tuple[int, int] = Field(
        default=(30, 39), description="a sample stops at a step drawn from these, counted from 0, and is predicted from there"
    )
    ceiling: float | None = Field(default=2.0, description="2 is for ImageReward; none: no ceiling")
    weight: float = Field(default=1e-3, gt=0, description="factor on the loss")

    @model_validator(mode="after")
    def _fits(self) -> ReFLConfig:
        low, high = self.late
        if not 0 <= low <= high < self.sampler.steps:
            raise ValueError(f"late={list(self.late)} must be two steps in order, within 0 to sampler.steps - 1")
        return self
