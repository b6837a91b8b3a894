"""What a recipe of ``polyalign synthesize`` can say. Light: no torch here."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from polyalign.rewards.config import RewardSlot
from polyalign.rewards.judge.config import EndpointConfig
from polyalign.slots import PluginSlot, PolicySlot
from polyalign.training.config import Config, SourceConfig

CRITIQUE = (
    "Criticise the response above: say what is wrong with it or missing, and how it should be changed. "
    "If nothing needs to be changed, reply with the word OK alone."
)
REFINE = "Write the response again so that it meets this critique. Reply with the new response alone."
REFINE_PROMPT = (
    "Something was generated for the request above, and criticised as said. Write the request again so that what is generated "
    "for it meets the critique. Reply with the new request alone."
)
# A critique that is all of this asks for nothing.
APPROVAL = (
    r"\W*(this is |that is |it is |looks |all )?(ok|okay|fine|good|great|perfect|correct|nothing|none|"
    r"no (issues?|problems?|changes?|critiques?|improvements?)|nothing (is wrong|(needs )?to (be )?(changed?|improved?)))"
    r"( (is |are )?(needed|found|required))?\W*"
)


class SynthesizerSlot(PluginSlot):
    """A synthesizer: its name, and its own options beside it."""

    kind = "synthesizers"


class SynthesisRecipe(Config):
    """One YAML file = one set of new records."""

    name: str
    summary: str = ""
    data: tuple[SourceConfig, ...] = Field(min_length=1, description="the records that new ones are made from")
    tags: tuple[str, ...] = Field((), description="use only records that carry all of these tags")
    synthesizer: SynthesizerSlot
    stages: str | None = Field(None, description="folder of finished work; none: in polyalign's cache folder")


class WriterConfig(Config):
    """Who writes: one of ``policy``, ``run``, ``endpoint`` and ``function``."""

    policy: PolicySlot | None = Field(None, description="a policy at its starting weights, as in a training recipe")
    run: str | None = Field(None, description="run folder: its policy with the weights that were trained")
    endpoint: EndpointConfig | None = Field(None, description="a chat endpoint, as judges have it")
    function: str | None = Field(
        None,
        description="file.py:function, given the prompt's text, the response and the critique, as far as there are any",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the function")
    decoding: dict[str, Any] = Field(default_factory=dict, description="how a policy writes, as its generate takes it")
    seed: int = 0

    @model_validator(mode="after")
    def _one_of_them(self) -> WriterConfig:
        given = [key for key in ("policy", "run", "endpoint", "function") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"found {' and '.join(given) or 'nobody'} to write; give one of policy, run, endpoint, function")
        if self.options and self.function is None:
            raise ValueError("options are keyword arguments of a function; a policy takes decoding, an endpoint its own keys")
        if self.decoding and given[0] in ("endpoint", "function"):
            raise ValueError(f"decoding is how a policy writes; this {given[0]} does not read it")
        return self


class FilterConfig(Config):
    """Which refinements become pairs. One that is the response again never does."""

    shortest: int = Field(1, ge=0, description="characters of a refined text")
    longest: int | None = Field(None, gt=0, description="characters of a refined text")
    longest_ratio: float | None = Field(None, gt=0, description="length of a refined text, in lengths of the first one")
    judge: RewardSlot | None = Field(None, description="a reward that must prefer the refinement too")
    margin: float = Field(0.0, description="by more than this")


class LanguageFeedbackConfig(Config):
    """Sample, criticise, refine, filter: pairs of a refined response over the first one."""

    generator: WriterConfig | None = Field(None, description="answers the prompts; none: the records' own candidates are taken")
    critic: WriterConfig | None = Field(None, description="criticises; none: the critiques that the records carry are taken")
    refiner: WriterConfig | None = Field(
        None,
        description="rewrites a text, or the request for a medium, by the critique; none: the generator rewrites texts, and a "
        "medium is generated for the critique itself, or for what follows '##Refinement:' in it",
    )
    samples: int = Field(1, gt=0, description="responses per prompt")
    critique_request: str = Field(CRITIQUE, description="what a critic that is a model is told after the response")
    refine_request: str = Field(REFINE, description="what a refiner that is a model is told after the critique of a text")
    prompt_request: str = Field(REFINE_PROMPT, description="the same after the critique of a generated medium")
    approval: str = Field(APPROVAL, description="a critique that matches this as a whole, in any case, asks for nothing")
    aspect: str = Field("overall", description="what the comparisons and critiques are about")
    filters: FilterConfig = FilterConfig()

    @field_validator("approval")
    @classmethod
    def _a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _somebody_for_each(self) -> LanguageFeedbackConfig:
        if self.critic is None and self.generator is not None:
            raise ValueError("nobody criticises what the generator writes: give a critic")
        if self.generator is None and self.refiner is None:
            raise ValueError("nobody refines: give a refiner, or a generator, which then refines too")
        if self.generator is None and self.samples != 1:
            raise ValueError(f"samples={self.samples} without a generator; the records' own candidates are taken as they are")
        return self


class CritiqueExamplesConfig(Config):
    """Each critique becomes the answer to a request for it, worded as the language-feedback synthesizer asks its critic."""

    critique_request: str = Field(CRITIQUE, description="what stands after the response")
    aspect: str | None = Field(None, description="take only critiques of this aspect; none: all")
