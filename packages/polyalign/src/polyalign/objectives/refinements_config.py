"""Configuration of DPO's refinements: which pairs, which decisions and stretches of time count how much. Light: no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyalign.objectives.config import DPOConfig, Positive

TimeUnit = Literal["seconds", "frames", "tokens", "steps"]


def _one_decision_each() -> dict[TimeUnit, float]:
    return {"tokens": 1.0, "steps": 1.0, "frames": 1.0}


class WPOConfig(DPOConfig):
    alignment: Literal["sampled", "none"] = Field(
        default="sampled",
        description="sampled: a token's probability is taken over the one that a sample of the policy has on average (the "
        "paper's choice, TRL); none: as it is, so that long tails of unlikely words weigh less in every pair",
    )


class LDDPOConfig(DPOConfig):
    ld_alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="factor on decisions beyond the shorter response's length; 1 is DPO, 0 leaves them out",
    )


class MMDPOConfig(DPOConfig):
    margin_from: Literal["record", "ratings", "strength"] = Field(
        default="ratings", description="where the reward margin comes from that beta grows with; no margin is subtracted"
    )
    margin_scale: float = Field(default=1.0, gt=0, description="k of the paper: how fast beta grows with the margin")
    growth: float = Field(default=0.5, ge=0, description="w of the paper: beta is at most 1 + growth times as large; 0 is DPO")


class TimelineConfig(DPOConfig):
    """Segments say when; decisions are counted. ``decisions_per`` translates."""

    decisions_per: dict[TimeUnit, Positive] = Field(
        default_factory=_one_decision_each,
        description="decisions per unit of a segment's time; seconds have no default, as only the policy's rate says it",
    )


class DenseDPOConfig(TimelineConfig):
    pass


class SegmentDPOConfig(TimelineConfig):
    reduction: Literal["sum", "mean"] = Field(
        default="mean", description="over decisions by their weight, as in the paper; sum does not divide"
    )
    beta: float = Field(default=0.5, gt=0, description="about 0.5 for means over tokens, 0.1 for sums")
    segment_weight: float = Field(
        default=5.0, ge=0, description="gamma of the paper: factor on decisions inside segments labelled good or bad; 1 is DPO"
    )
