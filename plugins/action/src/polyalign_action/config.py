"""What a recipe can set about an action policy and its rewards. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from polyalign.training.config import Config


class ActionConfig(Config):
    """A network over the observations of a gymnasium environment."""

    environment: str = Field("CartPole-v1", description="gymnasium id whose spaces the policy has; prompts name what is played")
    base: str | None = Field(None, description="folder that an earlier run saved; none: fresh weights")
    network: Literal["mlp", "transformer"] = Field(
        "mlp", description="mlp: acts on the latest observation; transformer: on the last policy.history of them"
    )
    hidden: tuple[int, ...] = Field(
        (64, 64), min_length=1, description="width of each hidden layer, or block of a transformer; actor and critic alike"
    )
    history: int = Field(8, gt=0, description="observations that a transformer sees, the latest included")
    heads: int = Field(4, gt=0, description="of a transformer's attention")
    activation: Literal["tanh", "relu"] = "tanh"
    goal: int = Field(0, ge=0, description="how many goal numbers a prompt gives; they join every observation")
    instruction: int = Field(
        0, ge=0, description="columns that the words of an instruction are hashed into; 0: words are not read"
    )
    value_head: bool = Field(False, description="add a critic, a network of its own, for actor-critic objectives")
    initial_std: float = Field(0.5, gt=0, description="first deviation of real-valued actions, in half-widths of the space")
    max_steps: int | None = Field(None, gt=0, description="cut episodes there, if the environment's own limit is not shorter")

    @model_validator(mode="after")
    def _blocks_are_alike(self) -> ActionConfig:
        if self.network == "transformer" and (len(set(self.hidden)) > 1 or self.hidden[0] % self.heads):
            raise ValueError(f"hidden={list(self.hidden)} of a transformer must be one width that heads={self.heads} divides")
        return self


class ReturnConfig(Config):
    """The ``return`` reward: the sum of an episode's rewards, step t's multiplied by discount^t."""

    discount: float = Field(1.0, gt=0, le=1)
