"""Configuration of Distributional Dispreference Optimization. Light: no torch here."""

from __future__ import annotations

from pydantic import Field

from polyalign.objectives.config import ObjectiveConfig


class D2OConfig(ObjectiveConfig):
    beta: float = Field(default=0.1, gt=0, description="of self-samples: about 0.1 for tokens, 2000 to 5000 for denoising errors")
    alpha: float = Field(default=0.1, gt=0, description="of the dispreferred response: what beta is for the self-samples")
