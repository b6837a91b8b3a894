"""Configuration of the reward that a finished run makes. Light: no torch here."""

from __future__ import annotations

from pydantic import Field

from polyalign.training.config import Config


class RewardModelRewardConfig(Config):
    run: str = Field(min_length=1, description="folder of a finished run that trained a reward model")
    annotator: str | None = Field(None, description="whose judgement (PAL); none: the average annotator's")
    aspect: str | None = Field(None, description="which aspect; none: the weighted sum of all")
    principles: tuple[str, ...] = Field((), description="texts to judge by (SALMON), put into every prompt")
    negated: tuple[str, ...] = Field((), description="texts whose opposite to judge by (SALMON)")
    batch_size: int = Field(16, gt=0, description="responses scored at once")
