"""The preference record: one prompt, N candidate responses, all feedback about them, of any modality."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

SCHEMA_VERSION: Literal[1] = 1

Scalar = str | int | float | bool

SELF = "self"  # producer of what the policy being aligned answered itself; ``self:...`` says more about it


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MediaRef(Frozen):
    """Points at one medium by content.

    ``sha256`` names the bytes. Without ``uri`` they lie in the media store beside the data under their hash;
    with it, at that path relative to the data set's root.
    """

    modality: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    mime: str = Field(pattern=r"^[\w.+-]+/[\w.+-]+$")
    length: int = Field(ge=0, description="size in bytes")
    uri: str | None = None


class TextPart(Frozen):
    type: Literal["text"] = "text"
    text: str


class MediaPart(Frozen):
    type: Literal["media"] = "media"
    media: MediaRef


Part = Annotated[TextPart | MediaPart, Field(discriminator="type")]


def _as_parts(value: Any) -> Any:
    """A bare string is one text part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(Frozen):
    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...] = Field(min_length=1)

    _text = field_validator("parts", mode="before")(_as_parts)


class Candidate(Frozen):
    """One response. It may carry its own prompt: a grid of instructions x pictures is one record."""

    parts: tuple[Part, ...] = Field(min_length=1)
    prompt: tuple[Message, ...] | None = None
    producer: str | None = Field(
        default=None, description="model, tool or person that made it; 'self', or 'self:...', is the policy being aligned"
    )
    conditions: dict[str, Scalar] = Field(default_factory=dict)

    _text = field_validator("parts", mode="before")(_as_parts)

    @property
    def is_self_sample(self) -> bool:
        """Whether the policy being aligned made it."""
        return self.producer is not None and self.producer.partition(":")[0] == SELF


class Comparison(Frozen):
    """A ranking from best to worst. Candidates of one tier are tied; ``incomparable`` ones are judged unrankable."""

    type: Literal["comparison"] = "comparison"
    ranking: tuple[tuple[int, ...], ...]
    incomparable: tuple[int, ...] = ()
    aspect: str = "overall"
    strength: float | None = Field(default=None, ge=0, description="how strong the preference is; 1 is ordinary")
    annotator: str | None = None

    @field_validator("ranking", mode="before")
    @classmethod
    def _bare_tiers(cls, value: Any) -> Any:
        """``[2, [0, 1]]`` means 2 is best and 0 ties with 1."""
        if isinstance(value, list | tuple):
            return [[tier] if isinstance(tier, int) else tier for tier in value]
        return value

    @model_validator(mode="after")
    def _each_once(self) -> Comparison:
        named = [index for tier in self.ranking for index in tier] + list(self.incomparable)
        twice = sorted({index for index in named if named.count(index) > 1})
        if twice:
            raise ValueError(f"candidate {twice[0]} is named twice in one comparison; name each candidate once")
        if any(not tier for tier in self.ranking):
            raise ValueError("a tier of the ranking is empty; remove it or name its candidates")
        if not named:
            raise ValueError("the comparison names no candidate; give a ranking or list incomparable candidates")
        return self


class Rating(Frozen):
    type: Literal["rating"] = "rating"
    candidate: int
    value: float
    scale: tuple[float, float] = (0.0, 1.0)
    aspect: str = "overall"
    annotator: str | None = None

    @model_validator(mode="after")
    def _inside_scale(self) -> Rating:
        low, high = self.scale
        if not low < high:
            raise ValueError(f"scale {self.scale} is empty; give [lowest, highest]")
        if not low <= self.value <= high:
            raise ValueError(f"value {self.value} lies outside its scale [{low}, {high}]")
        return self


class Critique(Frozen):
    type: Literal["critique"] = "critique"
    candidate: int
    parts: tuple[Part, ...] = Field(min_length=1)
    aspect: str = "overall"
    annotator: str | None = None

    _text = field_validator("parts", mode="before")(_as_parts)


class Refinement(Frozen):
    """Candidate ``after`` was made from candidate ``before`` by following the critiques about it."""

    type: Literal["refinement"] = "refinement"
    before: int
    after: int
    annotator: str | None = None


class Segment(Frozen):
    """A label on a stretch of one candidate, for example one second of a video."""

    type: Literal["segment"] = "segment"
    candidate: int
    start: float = Field(ge=0)
    end: float
    unit: Literal["seconds", "frames", "tokens", "steps"] = "seconds"
    value: float = Field(description="positive is good, negative is bad")
    aspect: str = "overall"
    annotator: str | None = None

    @model_validator(mode="after")
    def _forward(self) -> Segment:
        if not self.start < self.end:
            raise ValueError(f"segment ends at {self.end}, which is not after its start {self.start}")
        return self


Feedback = Annotated[Comparison | Rating | Critique | Refinement | Segment, Field(discriminator="type")]


def candidates_named(feedback: Comparison | Rating | Critique | Refinement | Segment) -> tuple[int, ...]:
    """Return the candidate indices that one piece of feedback speaks of."""
    if isinstance(feedback, Comparison):
        return (*(index for tier in feedback.ranking for index in tier), *feedback.incomparable)
    if isinstance(feedback, Refinement):
        return (feedback.before, feedback.after)
    return (feedback.candidate,)


class Provenance(Frozen):
    source: str
    method: str | None = Field(default=None, description="how the feedback was made: human, rule, model ...")
    notes: str | None = None


class Record(Frozen):
    """One prompt, its candidate responses and everything said about them.

    ``group`` gathers analogous records (a taxonomy node), ``conditions`` carry level, control, embodiment and the like.
    """

    id: str = Field(min_length=1)
    prompt: tuple[Message, ...] = ()
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    feedback: tuple[Feedback, ...] = ()
    group: str | None = None
    tags: tuple[str, ...] = ()
    conditions: dict[str, Scalar] = Field(default_factory=dict)
    provenance: Provenance | None = None
    licence: str | None = None
    schema_version: Literal[1] = SCHEMA_VERSION

    @field_validator("prompt", mode="before")
    @classmethod
    def _bare_prompt(cls, value: Any) -> Any:
        return [{"role": "user", "parts": value}] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        count = len(self.candidates)
        for position, feedback in enumerate(self.feedback):
            for index in candidates_named(feedback):
                if not 0 <= index < count:
                    found = {"field": f"feedback[{position}]", "index": index, "count": count, "last": count - 1}
                    raise PydanticCustomError(
                        "candidate_index", "{field} names candidate {index}, but there are {count} (0 to {last})", found
                    )
        for position, candidate in enumerate(self.candidates):
            if not (candidate.prompt or self.prompt):
                at = {"field": f"candidates[{position}]"}
                raise PydanticCustomError("no_prompt", "{field} has no prompt: give the record or the candidate one", at)
        return self

    def prompt_of(self, candidate: int) -> tuple[Message, ...]:
        """Return the prompt that candidate answers: its own, or the record's."""
        return self.candidates[candidate].prompt or self.prompt

    def media(self) -> tuple[MediaRef, ...]:
        """Return each distinct medium of the record once, in order of appearance."""
        parts: list[Any] = []
        for message in self.prompt:
            parts.extend(message.parts)
        for candidate in self.candidates:
            parts.extend(part for message in candidate.prompt or () for part in message.parts)
            parts.extend(candidate.parts)
        for feedback in self.feedback:
            parts.extend(feedback.parts if isinstance(feedback, Critique) else ())
        return tuple({part.media.sha256: part.media for part in parts if isinstance(part, MediaPart)}.values())


def text_of(parts: tuple[TextPart | MediaPart, ...]) -> str:
    """Return the text parts joined, media left out."""
    return "".join(part.text for part in parts if isinstance(part, TextPart))
