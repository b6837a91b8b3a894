"""What a recipe can set about a diffusion policy, and how it acts. Light: no torch here."""

from __future__ import annotations

from pydantic import Field, model_validator

from polyalign.policies.config import DenoisingConfig, SamplerConfig
from polyalign.training.config import Config


class DiffusionPolicyConfig(DenoisingConfig):
    """A network that denoises chunks of real-valued actions, in the light of what was seen before them."""

    environment: str = Field("Pendulum-v1", description="gymnasium id whose spaces the policy has; its actions are a Box")
    base: str | None = Field(None, description="folder that an earlier run saved; none: fresh weights")
    observations: int = Field(2, gt=0, description="observations, up to the latest, that a chunk is drawn in the light of")
    observation_scale: float = Field(
        1.0, gt=0, description="factor on what is seen, for worlds whose numbers differ by little; about 1 / their spread"
    )
    horizon: int = Field(8, gt=0, description="actions in a chunk")
    execute: int = Field(4, gt=0, description="actions of a chunk that are done before the next one is drawn")
    stride: int | None = Field(
        None,
        gt=0,
        description="steps between the chunks of a shown trajectory that are scored; none: as many as are executed; 1: a chunk "
        "from every step on, as the paper trains",
    )
    channels: int = Field(64, gt=0, multiple_of=8)
    blocks: int = Field(2, gt=0, description="residual blocks of two convolutions over the actions of a chunk")
    levels: int = Field(100, gt=1, description="noise levels of the schedule")
    goal: int = Field(0, ge=0, description="how many goal numbers a prompt gives; they join every observation")
    instruction: int = Field(
        0, ge=0, description="columns that the words of an instruction are hashed into; 0: words are not read"
    )
    max_steps: int | None = Field(None, gt=0, description="cut episodes there, if the environment's own limit is not shorter")

    @model_validator(mode="after")
    def _fits_together(self) -> DiffusionPolicyConfig:
        if self.execute > self.horizon:
            raise ValueError(f"execute={self.execute} is more than a chunk has: horizon={self.horizon}")
        return self


class DiffusionDecoding(Config):
    """How episodes are played: by steps without noise, or by ``sampler``, whose decisions can be scored again."""

    sampler: SamplerConfig | None = Field(None, description="draw rollouts to train on; the other keys are not for it")
    steps: int = Field(10, gt=0, description="steps of the sampler, for each chunk")
    batch_size: int = Field(64, gt=0, description="episodes played at once; it changes speed and memory only")

    @model_validator(mode="after")
    def _one_sampler(self) -> DiffusionDecoding:
        if self.sampler is None:
            return self
        if others := self.model_fields_set - {"sampler"}:
            raise ValueError(f"sampler has keys of its own and does not read {', '.join(sorted(others))}; move or drop them")
        if self.sampler.guidance > 1:
            raise ValueError("guidance pushes away from the empty prompt, and a diffusion policy knows none; leave it at 1")
        return self

    @property
    def used(self) -> SamplerConfig:
        """Return the sampler that draws chunks."""
        return self.sampler or SamplerConfig(steps=self.steps, batch_size=self.batch_size)
