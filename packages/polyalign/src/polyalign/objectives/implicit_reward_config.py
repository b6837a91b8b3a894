"""What sets the implicit reward of DPO, for objectives that do something else with it than compare pairs. Light: no torch."""

from __future__ import annotations

from pydantic import Field

from polyalign.objectives.config import Divergence, DPOConfig, ObjectiveConfig, Reduction


class ImplicitRewardConfig(ObjectiveConfig):
    """``beta g(X)`` of one response, as `DPOConfig` sets it, without the options that are about preferences."""

    beta: float = Field(default=0.1, gt=0, description="about 0.1 for summed tokens, 2000 to 5000 for mean denoising errors")
    reduction: Reduction = Field(default="sum", description="over decisions; with mean, beta is larger by their number")
    divergence: Divergence = Field(default="reverse_kl", description="penalty that the rewards stem from, as for dpo")
    alpha: float = Field(default=0.5, gt=0, lt=1, description="of the alpha divergence, as for dpo")

    def as_dpo(self) -> DPOConfig:
        """Return the configuration of the DPO whose rewards these are."""
        return DPOConfig.model_validate(self.model_dump(include=set(ImplicitRewardConfig.model_fields)))
