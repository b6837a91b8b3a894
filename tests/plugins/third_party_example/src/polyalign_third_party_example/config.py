"""Settings of the policy and the objective. Light: no torch here."""

from __future__ import annotations

from pydantic import Field

from polyalign.training.config import Config


class WalkerConfig(Config):
    hidden: int = Field(16, gt=0, description="width of the hidden layer")
    spread: float = Field(1.0, gt=0, description="standard deviation of a step")
    steps: int = Field(6, gt=0, description="length of a generated walk")


class ExponentialConfig(Config):
    beta: float = Field(0.2, gt=0, description="how fast the loss grows with a wrong margin")
