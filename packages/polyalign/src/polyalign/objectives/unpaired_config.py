"""Configuration of the objectives on single, labelled responses. Light: no torch here."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from polyalign.objectives.config import ObjectiveConfig


class APOZeroUnpairedConfig(ObjectiveConfig):
    kl: ClassVar[str] = "none"
    utility: ClassVar[str] = "kahneman_tversky"
    beta: float = Field(default=0.1, gt=0, description="about 0.1 for summed tokens, 1000 to 5000 for mean denoising errors")
    desirable_weight: float = Field(default=1.0, gt=0, description="factor on the loss of desirable responses")
    undesirable_weight: float = Field(default=1.0, gt=0, description="factor on the loss of undesirable responses")


class UnlikelihoodConfig(ObjectiveConfig):
    """Unlikelihood training has nothing else to set; for a likelihood term beside it see weighted_sum."""
