"""Rows in the column layout of TRL, to records and back.

Read: ``prompt/chosen/rejected`` and ``chosen/rejected`` (the prompt is what both begin with), ``prompt/completion/label``
(unpaired), ``prompt/completion`` and ``messages`` (fine-tuning). Values are strings or lists of ``{"role", "content"}``.
A label becomes a `Rating` of 1 or 0, a chosen/rejected pair a `Comparison`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyalign.records.problems import WHOLE, Defect
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Rating, Record, TextPart, text_of

_MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
_ROLES = ("system", "user", "assistant", "tool")


class RowError(ValueError):
    """A row that cannot be read; carries the `Defect`."""

    def __init__(self, field: str, kind: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.defect = Defect(field, kind, reason)


def is_trl(row: Mapping[str, Any]) -> bool:
    """Return whether a row has TRL columns (a record always has ``candidates``)."""
    return "candidates" not in row and bool({"chosen", "completion", "messages"} & row.keys())


def from_trl(row: Mapping[str, Any], fallback_id: str) -> Record:
    """Return the record of one row; ``fallback_id`` names it if it has no ``id``. Raises `RowError`.

    Columns other than TRL's are not read. Rows with media columns are refused: training without them would go unnoticed.
    """
    row = {key: value for key, value in row.items() if value is not None}
    for column in _MEDIA_COLUMNS:
        if column in row:
            raise RowError(
                column, "unsupported", "media in TRL columns are not read in place; write records: `polyalign data import trl`"
            )
    if "tools" in row:
        raise RowError("tools", "unsupported", "tool definitions are not read; put them into a system message")
    identity = str(row.get("id", fallback_id)) or fallback_id
    if "chosen" in row:
        _require(row, "rejected")
        prompt, chosen, rejected = _pair(row)
        return Record(id=identity, prompt=prompt, candidates=(chosen, rejected), feedback=(Comparison(ranking=((0,), (1,))),))
    if "completion" in row:
        _require(row, "prompt")
        prompt = _messages(row["prompt"], "prompt", "user")
        answer = _answer(_messages(row["completion"], "completion", "assistant"), "completion")
        return Record(id=identity, prompt=prompt, candidates=(answer,), feedback=_labelled(row))
    messages = _messages(row["messages"], "messages", "user")
    if len(messages) < 2:
        raise RowError("messages", "no prompt", f"expected a prompt and an answer; found {len(messages)} message(s)")
    answer = _answer(messages[-1:], f"messages[{len(messages) - 1}]")
    return Record(id=identity, prompt=messages[:-1], candidates=(answer,))


def to_trl(record: Record, layout: str = "pairs") -> Iterator[dict[str, Any]]:
    """Yield the conversational TRL rows of a record: ``layout`` is "pairs", "unpaired" or "sft". Raises `RowError` on media."""
    from polyalign.records.views import VIEWS  # views build on nothing here; imported late to keep reading light

    for example in VIEWS[layout](record, None):
        samples = example.samples
        prompt = [_as_dict(message) for message in samples[0].prompt]
        if layout == "pairs":
            edge = example.edges[0]
            if edge.contrast == "prompt":
                continue
            better, worse = samples[edge.better], samples[edge.worse]
            yield {"prompt": prompt, "chosen": _reply(better.response), "rejected": _reply(worse.response)}
        elif layout == "unpaired":
            yield {"prompt": prompt, "completion": _reply(samples[0].response), "label": example.labels[0] > 0}
        else:
            yield {"prompt": prompt, "completion": _reply(samples[0].response)}


def _require(row: Mapping[str, Any], column: str) -> None:
    if column not in row:
        raise RowError(WHOLE, "missing key", f"{column!r} is missing; the row has {', '.join(sorted(row))}")


def _labelled(row: Mapping[str, Any]) -> tuple[Rating, ...]:
    if "label" not in row:
        return ()
    if not isinstance(row["label"], bool) and row["label"] not in (0, 1):
        raise RowError("label", "wrong type", f"expected true or false; found {row['label']!r}")
    return (Rating(candidate=0, value=float(row["label"])),)


def _pair(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], Candidate, Candidate]:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("rejected", "wrong type", "'chosen' and 'rejected' differ in form; give two strings or two lists")
    if "prompt" in row:
        prompt = _messages(row["prompt"], "prompt", "user")
        if isinstance(chosen, str):
            return prompt, *(_text_answer(row[column], column) for column in ("chosen", "rejected"))  # type: ignore[return-value]
        sides = {column: _messages(row[column], column, "assistant") for column in ("chosen", "rejected")}
        # Some data sets repeat the prompt inside both answers.
        if all(len(side) > len(prompt) and side[: len(prompt)] == prompt for side in sides.values()):
            sides = {column: side[len(prompt) :] for column, side in sides.items()}
        return prompt, _answer(sides["chosen"], "chosen"), _answer(sides["rejected"], "rejected")
    if isinstance(chosen, str):
        cut = _shared_text(chosen, rejected)
        if not chosen[:cut].strip():
            raise RowError(WHOLE, "no prompt", "'chosen' and 'rejected' share no beginning, and there is no 'prompt' column")
        prompt = _messages(chosen[:cut], "chosen", "user")
        return prompt, _text_answer(chosen[cut:], "chosen"), _text_answer(rejected[cut:], "rejected")
    better, worse = _messages(chosen, "chosen", "user"), _messages(rejected, "rejected", "user")
    cut = _shared_length(better, worse)
    if cut == 0:
        raise RowError(WHOLE, "no prompt", "'chosen' and 'rejected' share no first message, and there is no 'prompt' column")
    return better[:cut], _answer(better[cut:], "chosen"), _answer(worse[cut:], "rejected")


def _shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    shared = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        shared += 1
    return shared


def _shared_text(chosen: str, rejected: str) -> int:
    """Return the length of the common beginning; a space before the first difference belongs to the answers, as in TRL.

    Where one text is all of the other, TRL 1.16 stops one character early; here the shorter answer is empty.
    """
    cut = _shared_length(chosen, rejected)
    return cut - 1 if cut and chosen[cut - 1] == " " else cut


def _messages(value: Any, field: str, role: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message(role=role, parts=(TextPart(text=value),)),)
    if not isinstance(value, list | tuple) or not value:
        raise RowError(field, "wrong type", f"expected a string or a list of messages; found {value!r:.60}")
    messages = []
    for position, message in enumerate(value):
        at = f"{field}[{position}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise RowError(at, "wrong type", f"expected {{'role': ..., 'content': ...}}; found {message!r:.60}")
        if message["role"] not in _ROLES:
            raise RowError(f"{at}.role", "wrong value", f"role {message['role']!r} is not one of {', '.join(_ROLES)}")
        if message.get("tool_calls"):
            raise RowError(f"{at}.tool_calls", "unsupported", "tool calls are not read; write them out as text")
        messages.append(Message(role=message["role"], parts=_content(message["content"], f"{at}.content")))
    return tuple(messages)


def _content(content: Any, field: str) -> tuple[TextPart | MediaPart, ...]:
    """Return the parts of a message; media must be parts of ours already (an importer stores them)."""
    if isinstance(content, str):
        return (TextPart(text=content),)
    if not isinstance(content, list | tuple) or not content:
        raise RowError(field, "wrong type", f"expected text; found {content!r:.60}")
    parts: list[TextPart | MediaPart] = []
    for position, item in enumerate(content):
        if isinstance(item, MediaPart):
            parts.append(item)
            continue
        if not isinstance(item, Mapping) or item.get("type") != "text" or not isinstance(item.get("text"), str):
            raise RowError(f"{field}[{position}]", "unsupported", f"only text is read from TRL columns; found {item!r:.60}")
        parts.append(TextPart(text=item["text"]))
    return tuple(parts)


def _text_answer(text: str, field: str) -> Candidate:
    if not isinstance(text, str):
        raise RowError(field, "wrong type", f"expected a string; found {text!r:.60}")
    return Candidate(parts=(TextPart(text=text),))


def _answer(messages: Sequence[Message], field: str) -> Candidate:
    if len(messages) != 1 or messages[0].role != "assistant":
        found = ", ".join(message.role for message in messages) or "nothing"
        raise RowError(field, "wrong value", f"expected one assistant message after the prompt; found {found}")
    return Candidate(parts=messages[0].parts)


def _as_dict(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": _only_text(message.parts)}


def _reply(parts: tuple[TextPart | MediaPart, ...]) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": _only_text(parts)}]


def _only_text(parts: tuple[TextPart | MediaPart, ...]) -> str:
    for part in parts:
        if isinstance(part, MediaPart):
            raise RowError(WHOLE, "unsupported", f"TRL columns hold text only; the record holds a medium ({part.media.modality})")
    return text_of(parts)
