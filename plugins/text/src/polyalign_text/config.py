"""What a recipe can set about a text policy. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from polyalign.policies.config import PretrainedConfig


class TextConfig(PretrainedConfig):
    """A transformers causal language model."""

    value_head: bool = Field(False, description="add a linear value head over hidden states, for actor-critic objectives")


class ControlAdaptersConfig(PretrainedConfig):
    """A causal language model with a soft prompt per kind of behaviour (MEET)."""

    stage: Literal["modules", "joint"] = Field("joint", description="modules: only the soft prompts train; joint: the model too")
    labels: tuple[str, ...] = Field(("good", "bad"), min_length=1, description="kinds of behaviour, a soft prompt each")
    length: int = Field(20, gt=0, description="vectors per soft prompt")
    control: str = Field(
        "good", description="label of samples that name none, and what is generated unless asked otherwise; several by a+b"
    )
    modules: str | None = Field(
        None, description="folder with soft prompts to start from; none: those of the base, else fresh ones"
    )
    modules_rate_scale: float = Field(1.0, gt=0, description="factor on the optimizer's learning rate for the soft prompts")

    @model_validator(mode="after")
    def _labels_fit(self) -> ControlAdaptersConfig:
        if len(set(self.labels)) < len(self.labels) or any("+" in label or not label for label in self.labels):
            raise ValueError(f"labels {list(self.labels)} must be distinct, not empty and without '+'")
        asked = self.control.split("+")
        if unknown := [label for label in asked if label not in self.labels]:
            raise ValueError(f"control {self.control!r} names {unknown[0]!r}, which is none of the labels {list(self.labels)}")
        if self.length * len(asked) + self.max_response >= self.max_length:
            raise ValueError(
                f"soft prompts of {self.length * len(asked)} vectors and max_response={self.max_response} leave no room for the "
                f"prompt within max_length={self.max_length}; raise max_length"
            )
        if self.stage == "modules" and self.lora is not None:
            raise ValueError("stage modules trains the soft prompts alone; drop lora, or set stage: joint")
        return self
