"""What is wrong with one line of data: where exactly, of which kind, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from polyalign.errors import nearest
from polyalign.records import schema

WHOLE = "record"  # the field of a problem that concerns the whole line

_MODELS: dict[str, type[BaseModel]] = {
    "prompt": schema.Message,
    "candidates": schema.Candidate,
    "media": schema.MediaRef,
    "provenance": schema.Provenance,
}
_TAGGED: dict[str, type[BaseModel]] = {
    "text": schema.TextPart,
    "media": schema.MediaPart,
    "comparison": schema.Comparison,
    "rating": schema.Rating,
    "critique": schema.Critique,
    "refinement": schema.Refinement,
    "segment": schema.Segment,
}


@dataclass(frozen=True)
class Defect:
    """One thing wrong with a row: ``field`` as a path (``candidates[1].parts[0].text``), a short ``kind``, and the reason."""

    field: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Problem:
    """A `Defect` with the file (as the user named it) and its line, counted from 1. Prints as ``file:line:field: reason``."""

    file: str
    line: int
    defect: Defect

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.defect.field}: {self.defect.reason}"


def defects_of(error: ValidationError) -> list[Defect]:
    """Return what pydantic found, each once, with the path as the user wrote it and a reason that says what was found."""
    defects: dict[Defect, None] = {}
    for detail in error.errors(include_url=False):
        # pydantic calls a list empty, too, once all its items were rejected
        if detail["type"] == "too_short" and len(detail["input"]) > 0:
            continue
        path, model = _locate(detail["loc"])
        context = detail.get("ctx", {})
        if "field" in context:
            path = str(context["field"])
        kind, reason = _reason(detail, model, path)
        defects.setdefault(Defect(path or WHOLE, kind, reason))
    return list(defects)


def media_fields(record: schema.Record) -> Iterator[tuple[str, schema.MediaRef]]:
    """Yield every media reference of a record with its path, such as ``candidates[1].parts[0].media``."""

    def of_parts(parts: Sequence[schema.TextPart | schema.MediaPart], at: str) -> Iterator[tuple[str, schema.MediaRef]]:
        for number, part in enumerate(parts):
            if isinstance(part, schema.MediaPart):
                yield f"{at}.parts[{number}].media", part.media

    for number, message in enumerate(record.prompt):
        yield from of_parts(message.parts, f"prompt[{number}]")
    for number, candidate in enumerate(record.candidates):
        for turn, message in enumerate(candidate.prompt or ()):
            yield from of_parts(message.parts, f"candidates[{number}].prompt[{turn}]")
        yield from of_parts(candidate.parts, f"candidates[{number}]")
    for number, feedback in enumerate(record.feedback):
        if isinstance(feedback, schema.Critique):
            yield from of_parts(feedback.parts, f"feedback[{number}]")


def _locate(loc: Sequence[str | int]) -> tuple[str, type[BaseModel]]:
    """Return the path without pydantic's union tags, and the model that holds its last key."""
    path = ""
    model: type[BaseModel] = schema.Record
    for at, item in enumerate(loc):
        if isinstance(item, int):
            path += f"[{item}]"
            continue
        if at >= 2 and isinstance(loc[at - 1], int) and loc[at - 2] in ("parts", "feedback") and item in _TAGGED:
            model = _TAGGED[item]
            continue
        path += f".{item}" if path else item
        if item == "conditions":  # what follows is the user's key, then the scalar types that were tried
            return path + (f".{loc[at + 1]}" if at + 1 < len(loc) else ""), model
        if at + 1 < len(loc):
            model = _MODELS.get(item, model)
    return path, model


def _reason(detail: Any, model: type[BaseModel], path: str) -> tuple[str, str]:
    kind, found = detail["type"], detail["input"]
    key = path.rpartition(".")[2]
    if kind == "extra_forbidden":
        return "unknown key", f"unknown key {key!r}.{nearest(key, model.model_fields)} Known: {', '.join(model.model_fields)}"
    if kind == "missing":
        return "missing key", f"{key!r} is missing"
    if kind == "union_tag_not_found":
        return "missing key", "'type' is missing; it says which kind this is"
    if kind == "union_tag_invalid":
        known = detail["ctx"]["expected_tags"]
        return "wrong value", f"type {detail['ctx']['tag']!r} is not known; expected one of {known}"
    if path == "schema_version":
        return "schema version", (
            f"schema version {_short(found)} is not known; this polyalign reads version {schema.SCHEMA_VERSION}: upgrade it"
        )
    if "conditions" in path.split("."):
        return "wrong type", f"a condition is a text, a finite number or true/false; found {_short(found)}"
    if kind in ("candidate_index", "no_prompt"):
        return kind.replace("_", " "), detail["msg"].removeprefix(f"{path} ")
    if kind == "value_error":
        return "wrong value", detail["msg"].removeprefix("Value error, ")
    if kind == "finite_number":
        return "not finite", f"expected a finite number; found {found}"
    if kind == "too_short":
        return "empty", f"is empty; expected at least {detail['ctx']['min_length']}"
    if kind == "string_too_short":
        return "empty", "is empty"
    sort = "wrong type" if kind.endswith("_type") or kind.endswith("_parsing") else "wrong value"
    return sort, f"{_lowered(detail['msg'])}; found {_short(found)}"


def _lowered(message: str) -> str:
    message = re.sub(r"^Input should", "should", message)
    return message[:1].lower() + message[1:]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
