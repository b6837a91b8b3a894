"""What a recipe can set about UniAct: its policy and its objective. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from polyalign.objectives.config import SFTConfig
from polyalign.training.config import Config


class UniActConfig(Config):
    """One policy for several bodies: what to do is a code of a shared codebook, how to do it is each body's own head."""

    embodiments: tuple[str, ...] = Field(min_length=1, description="gymnasium ids, one per body; prompts name what is played")
    base: str | None = Field(None, description="folder that an earlier run saved; heads it lacks are fresh. None: fresh weights")
    view: int = Field(gt=0, description="how many numbers, first in every body's observation, all bodies see alike")
    heads_see: Literal["all", "senses"] = Field(
        "all", description="what heads read besides the code: the whole observation, or only what lies beyond the view"
    )
    words: int = Field(64, ge=0, description="columns that the instruction's words are hashed into; 0: it is not read")
    hidden: tuple[int, ...] = Field((128, 128), min_length=1, description="layers of the extractor, from view and words")
    head_hidden: tuple[int, ...] = Field((64,), min_length=1, description="layers of each head, from observation and code")
    codes: int = Field(64, gt=1, description="vectors in the codebook")
    code_size: int = Field(32, gt=0)
    choice: Literal["soft", "straight_through", "hard", "none"] = Field(
        "soft", description="how a code is chosen; hard gives the extractor no gradient, none is no codebook, for comparison"
    )
    noise: bool = Field(True, description="Gumbel noise on the choice when data is scored; never when the policy acts")
    temperature: tuple[float, float] = Field((2.0, 0.5), description="of the choice: at the start and at the end of training")
    trains: Literal["all", "heads"] = Field("all", description="heads: extractor and codebook are frozen, for a new body")
    delta: float = Field(0.1, gt=0, description="where Huber's loss turns linear, in half-widths of an action's range")
    initial_std: float = Field(0.3, gt=0, description="first deviation of real-valued actions, in half-widths of the space")
    learn_std: bool = Field(False, description="learn the deviations, as online runs want; else the loss is Huber's")
    value_head: bool = Field(False, description="add a critic over view and words, for actor-critic objectives")
    max_steps: int | None = Field(None, gt=0, description="cut episodes there, if the environment's own limit is not shorter")

    @model_validator(mode="after")
    def _consistent(self) -> UniActConfig:
        if len(set(self.embodiments)) < len(self.embodiments):
            raise ValueError(f"embodiments name one twice: {', '.join(self.embodiments)}")
        if min(self.temperature) <= 0:
            raise ValueError(f"temperature={self.temperature} must be above 0")
        if self.choice == "hard" and self.trains == "all" and self.base is None:
            raise ValueError("choice 'hard' gives a fresh extractor no gradient; train it soft, then set base and trains: heads")
        return self


class UniActObjectiveConfig(SFTConfig):
    """The ``uniact`` objective."""

    entropy_coef: float = Field(0.0, ge=0, description="weight of each choice's divergence from the even use of all codes")
