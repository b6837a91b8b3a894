"""What a view makes of records: samples (prompt, response) and the feedback that relates them. No tensors here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from polyalign.records.schema import MediaPart, MediaRef, Message, Scalar, TextPart

Role = Literal["response", "mismatch", "self_sample"]


class MediaSource(Protocol):
    """Opens media of one data set. Picklable, so that loader workers can carry it."""

    def read(self, ref: MediaRef) -> bytes: ...

    def path(self, ref: MediaRef) -> Path: ...


class Prompt(tuple[Message, ...]):
    """The messages of a prompt, with what opens their media and the record's conditions (its reference answer, say). Equal
    to, and usable as, the plain tuple."""

    media: MediaSource | None = None
    conditions: Mapping[str, Scalar] = MappingProxyType({})

    @classmethod
    def of(
        cls, messages: tuple[Message, ...], media: MediaSource | None, conditions: Mapping[str, Scalar] | None = None
    ) -> Prompt:
        prompt = cls(messages)
        prompt.media = media
        prompt.conditions = dict(conditions or {})
        return prompt


@dataclass(frozen=True)
class Sample:
    """One (prompt, response) pair to be scored.

    ``draw_key`` is shared by all samples of one connected set, so that chosen, rejected and reference see the same noise.
    ``epoch`` is set by the trainer's stream and keys the randomness of that pass over the data.
    ``role`` marks samples that only estimate a statistic: KTO's mismatched pairs, D2O's self-samples.
    """

    id: str
    prompt: tuple[Message, ...]
    response: tuple[TextPart | MediaPart, ...]
    draw_key: str
    media: MediaSource | None = field(default=None, compare=False, repr=False)
    conditions: Mapping[str, Scalar] = field(default_factory=dict)
    role: Role = "response"
    epoch: int = 0

    def content_key(self) -> str:
        """Return a hash of prompt, response and conditions: equal content, equal key, whatever the record is called."""
        content = [
            [message.model_dump() for message in self.prompt],
            [part.model_dump() for part in self.response],
            dict(self.conditions),
        ]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Edge:
    """Sample ``better`` is preferred to sample ``worse`` (indices into the example's samples).

    ``contrast`` says what differs: "response" under one prompt, or "prompt" for one response (a grid's columns).
    """

    better: int
    worse: int
    weight: float = 1.0
    margin: float = 0.0
    aspect: str = "overall"
    annotator: str | None = None
    ranking: int = 0
    contrast: Literal["response", "prompt"] = "response"


@dataclass(frozen=True)
class Ranked:
    """Sample ``sample`` has rank ``rank`` (0 is best, equal ranks tie) in ranking number ``ranking`` of the example.

    ``weight`` and ``contrast`` are the ranking's own, the same for all of its samples, and mean what they mean for an `Edge`.
    """

    sample: int
    rank: int
    ranking: int = 0
    weight: float = 1.0
    contrast: Literal["response", "prompt"] = "response"


@dataclass(frozen=True)
class Rated:
    """Sample ``sample`` has ``value`` on [0, 1] (rescaled from the annotator's scale) for one aspect."""

    sample: int
    value: float
    aspect: str = "overall"
    annotator: str | None = None


@dataclass(frozen=True)
class Labelled:
    """A stretch of one sample is good (positive) or bad (negative); unit as in the record."""

    sample: int
    start: float
    end: float
    unit: str
    value: float


@dataclass(frozen=True)
class Example:
    """One row of a view: the samples that belong together, and how feedback relates them.

    ``labels`` holds one entry per sample: +1 desirable, -1 undesirable, 0 unlabelled (the unpaired view sets it).
    """

    record_id: str
    samples: tuple[Sample, ...]
    edges: tuple[Edge, ...] = ()
    rankings: tuple[Ranked, ...] = ()
    ratings: tuple[Rated, ...] = ()
    segments: tuple[Labelled, ...] = ()
    labels: tuple[int, ...] = ()
