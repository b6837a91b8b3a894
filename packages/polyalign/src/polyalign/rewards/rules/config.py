"""What a recipe, or a record's list of constraints, can set about verifiers. Light: no torch here."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from polyalign.rewards.config import RewardTerm
from polyalign.training.config import Config


class RangeConfig(Config):
    """From ``minimum`` to ``maximum``, both included; at least one of them."""

    minimum: float | None = Field(None, ge=0)
    maximum: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _some_range(self) -> RangeConfig:
        if self.minimum is None and self.maximum is None:
            raise ValueError("give minimum, maximum or both")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum={self.minimum:g} is above maximum={self.maximum:g}")
        return self


class TextLengthConfig(RangeConfig):
    """How long a text is. ``bullets``: lines after "- ", with no other lines."""

    unit: Literal["words", "characters", "sentences", "lines", "bullets"] = "words"


class KeywordsConfig(Config):
    """Words and phrases that have to be there, or must not; whole words, in any case unless told otherwise."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    match_case: bool = False

    @model_validator(mode="after")
    def _some_word(self) -> KeywordsConfig:
        if not self.include and not self.exclude:
            raise ValueError("give include, exclude or both")
        return self


class LetterCaseConfig(Config):
    case: Literal["lower", "upper"]


class EdgeConfig(Config):
    text: str = Field(min_length=1, description="what the response begins or ends with, blanks around it aside")


class RegexConfig(Config):
    """A Python regular expression. Records may not name this rule: a pattern can take forever."""

    pattern: str
    absent: bool = Field(False, description="the pattern must not occur")
    whole: bool = Field(False, description="the whole response has to match, not a part of it")
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value


class JsonConfig(Config):
    """Valid JSON and nothing around it; NaN is not JSON."""

    keys: tuple[str, ...] | None = Field(None, description="an object with exactly these keys")
    json_schema: dict[str, Any] | None = Field(None, description="a JSON Schema to be met (needs polyalign[rules])")


class ExtractiveConfig(Config):
    n: int = Field(1, gt=0, description="words in a row that have to stand in the prompt together")


class DistinctConfig(Config):
    n: int = Field(2, gt=0, description="words in a row that count as the same")


class ExactAnswerConfig(Config):
    """The reference is a condition of the record."""

    answer: str = Field("answer", description="the condition that holds the reference")
    kind: Literal["auto", "number", "letter", "text"] = Field(
        "auto", description="auto: a number or a letter of letters if the reference is one, else text"
    )
    place: Literal["auto", "boxed", "marked", "last"] = Field(
        "auto",
        description='boxed: \\boxed{...}; marked: after "####" or "answer is"; last: the last number or letter, or the whole '
        "text; auto: the first of these that is there",
    )
    letters: str = Field("ABCDE", min_length=1, description="the letters of multiple choice")
    tolerance: float = Field(0.0, ge=0, description="numbers may differ by this share of the reference")
    no_reference: float | None = Field(None, description="value where the record has no reference; null: an error")


class SuccessConfig(Config):
    key: str = Field("success", description="what the environment (or the candidate's conditions) calls it")


class ConsistentOrderConfig(Config):
    """Items of one group each say whether one thing comes before another."""

    first: str = Field("first", description="the condition that names the one thing")
    second: str = Field("second", description="the condition that names the other")
    before: tuple[str, ...] = Field(("before", "earlier"), min_length=1, description="words for: the first comes first")
    after: tuple[str, ...] = Field(("after", "later"), min_length=1, description="words for: the second comes first")


class ConstraintsConfig(Config):
    """The constraint satisfaction rate. ``share``: weighted mean of what is kept; ``all``: 1 if everything is, else 0."""

    credit: Literal["share", "all"] = "share"
    constraints: tuple[RewardTerm, ...] = Field((), description="asked of every response, besides what its record asks")
    none: float = Field(1.0, ge=0, le=1, description="value where nothing is asked")

    @field_validator("constraints")
    @classmethod
    def _weights(cls, value: tuple[RewardTerm, ...]) -> tuple[RewardTerm, ...]:
        for term in value:
            if term.weight <= 0:
                raise ValueError(f"{term.name!r} has weight {term.weight:g}; a constraint's weight is above 0")
        return value
