"""Importers of the layouts that training libraries read: TRL's columns, LLaMA-Factory's sharegpt, ms-swift's messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from polyalign.records.importing.base import Importer, Row, one_of, parts_of, require
from polyalign.records.importing.media import IncomingMedia
from polyalign.records.problems import WHOLE
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Rating, Record, TextPart
from polyalign.records.trl import RowError, from_trl, is_trl

COLUMNS = {"image": ("images", "image"), "video": ("videos", "video"), "audio": ("audios", "audio")}
ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "observation": "tool", "tool": "tool", "tool_response": "tool",
}  # fmt: skip
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
Parts = tuple[TextPart | MediaPart, ...]


class Waiting:
    """The media of one row, in order, until placeholders in its texts call for them."""

    def __init__(self, row: Row, media: IncomingMedia) -> None:
        self.parts: dict[str, list[MediaPart]] = {}
        self.counts: dict[str, int] = {}
        for modality, columns in COLUMNS.items():
            column = next((column for column in columns if row.get(column)), None)
            values = [] if column is None else row[column] if isinstance(row[column], list) else [row[column]]
            self.parts[modality] = [media.part(value, modality, f"{column}[{at}]") for at, value in enumerate(values)]
            self.counts[modality] = len(values)

    def next(self, modality: str, field: str) -> MediaPart:
        if not self.parts[modality]:
            raise RowError(
                field, "too few media", f"its texts call for more than the {self.counts[modality]} {modality}(s) given"
            )
        return self.parts[modality].pop(0)

    def filled(self, text: str, field: str) -> Parts:
        """Return the text with each ``<image>``, ``<video>`` and ``<audio>`` replaced by the next such medium."""
        if not isinstance(text, str):
            raise RowError(field, "wrong type", f"expected text; found {text!r:.60}")
        pieces = _PLACEHOLDER.split(text)
        found = [self.next(piece, field) if at % 2 else piece for at, piece in enumerate(pieces)]
        kept = [piece for piece in found if not isinstance(piece, str) or piece]
        return parts_of(*([piece] if isinstance(piece, MediaPart) else piece for piece in kept or [text]))

    def rest(self) -> tuple[MediaPart, ...]:
        """Return the media that no placeholder has called for."""
        left = tuple(part for parts in self.parts.values() for part in parts)
        self.parts = {modality: [] for modality in self.parts}
        return left


class TRL(Importer):
    """TRL's columns, text and vision: ``{"type": "image"}`` items take the row's images in order; where no message has any,
    they stand in front of the first user message, as in TRL."""

    def check(self, row: Row) -> None:
        if not is_trl(row):
            raise RowError(WHOLE, "missing column", f"expected chosen, completion or messages; found: {', '.join(sorted(row))}")

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row = {key: value for key, value in rows[0].items() if value is not None}
        pictures = Waiting(row, media)
        given, total = list(pictures.parts["image"]), sum(pictures.counts.values())
        texts = {key: value for key, value in row.items() if not any(key in columns for columns in COLUMNS.values())}
        if total:
            lists = [
                key for key in ("prompt", "chosen", "rejected", "completion", "messages") if isinstance(texts.get(key), list)
            ]
            called = any(_calls(message) for key in lists for message in texts[key])
            if not called and isinstance(texts.get("prompt"), str):
                texts["prompt"] = [{"role": "user", "content": texts["prompt"]}]
                for key in ("chosen", "rejected", "completion"):
                    if isinstance(texts.get(key), str):
                        texts[key] = [{"role": "assistant", "content": texts[key]}]
                lists = [key for key in texts if isinstance(texts[key], list)]
            for key in lists:
                if "prompt" not in texts or key == "prompt":
                    pictures.parts["image"] = list(given)  # every list tells the conversation from its start
                texts[key] = [self._filled(message, pictures, f"{key}[{at}]") for at, message in enumerate(texts[key])]
                if not called and key in ("prompt", "messages", *({"chosen", "rejected"} if "prompt" not in texts else ())):
                    _put_first(texts[key], pictures.rest())
            if left := len(pictures.rest()):
                raise RowError("images", "too many media", f"its messages call for {total - left} of {total} media")
        yield from_trl(texts, name)

    def _filled(self, message: Any, pictures: Waiting, field: str) -> Any:
        if not _calls(message):
            return message
        content = [pictures.next(item["type"], field) if item.get("type") in COLUMNS else item for item in message["content"]]
        return {**message, "content": content}


def _calls(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, list) and any(isinstance(item, dict) and item.get("type") in COLUMNS for item in content)


def _put_first(messages: list[Any], media: tuple[MediaPart, ...]) -> None:
    for at, message in enumerate(messages):
        if message.get("role") == "user":
            content = message["content"]
            items = [{"type": "text", "text": content}] if isinstance(content, str) else content
            messages[at] = {**message, "content": [*media, *items]}
            return


class LlamaFactory(Importer):
    """LLaMA-Factory's sharegpt layout: ``conversations`` of {from, value} (or ``messages`` of {role, content}), with ``chosen``
    and ``rejected`` (ranking), ``kto_tag`` (unpaired), or an answer as the last turn (fine-tuning); ``system``; ``images``,
    ``videos``, ``audios``, called for by ``<image>`` and the like."""

    def check(self, row: Row) -> None:
        if "conversations" not in row and "messages" not in row:
            require(row, ("conversations",))

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row, waiting = rows[0], Waiting(rows[0], media)
        column = "conversations" if row.get("conversations") else "messages"
        turns = [_turn(turn, waiting, f"{column}[{at}]") for at, turn in enumerate(row[column])]
        if row.get("system"):
            turns.insert(0, Message(role="system", parts=parts_of(row["system"])))
        feedback: tuple[Any, ...] = ()
        if row.get("chosen") is not None:
            sides = [_turn(row[side], waiting, side).parts for side in ("chosen", "rejected")]
            prompt, answers, feedback = turns, sides, (Comparison(ranking=((0,), (1,))),)
        else:
            if len(turns) < 2 or turns[-1].role != "assistant":
                raise RowError(column, "no answer", "expected an assistant's turn at the end, or 'chosen' and 'rejected'")
            label = row.get("kto_tag")
            prompt, answers = turns[:-1], [turns[-1].parts]
            if label is not None:
                feedback = (Rating(candidate=0, value=float(one_of(row, "kto_tag", (True, False)))),)
        if left := len(waiting.rest()):
            raise RowError(column, "too many media", f"{left} media are not called for by <image>, <video> or <audio>")
        candidates = tuple(Candidate(parts=parts) for parts in answers)
        yield Record(id=name, prompt=tuple(prompt), candidates=candidates, feedback=feedback)


class MsSwift(Importer):
    """ms-swift's layout: ``messages`` of {role, content} with the answer last; ``rejected_response`` (pairs: text, or a list of
    them) or ``rejected_messages``; ``label`` (unpaired); media as in LLaMA-Factory, those not called for in front of the first
    user message."""

    columns: ClassVar[tuple[str, ...]] = ("messages",)

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row, waiting = rows[0], Waiting(rows[0], media)
        turns = [_turn(turn, waiting, f"messages[{at}]") for at, turn in enumerate(row["messages"])]
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise RowError("messages", "no answer", "expected an assistant's message at the end")
        rejected = row.get("rejected_response")
        answers = [turns[-1].parts]
        if rejected is not None:
            texts = rejected if isinstance(rejected, list) else [rejected]
            answers += [waiting.filled(text, "rejected_response") for text in texts]
        elif row.get("rejected_messages"):
            answers.append(_turn(row["rejected_messages"][-1], waiting, "rejected_messages[-1]").parts)
        feedback: tuple[Any, ...] = ()
        if len(answers) > 1:
            feedback = (Comparison(ranking=((0,), tuple(range(1, len(answers))))),)
        elif row.get("label") is not None:
            feedback = (Rating(candidate=0, value=float(one_of(row, "label", (True, False)))),)
        prompt = turns[:-1]
        if left := waiting.rest():
            at = next(at for at, turn in enumerate(prompt) if turn.role == "user")
            prompt[at] = Message(role="user", parts=(*left, *prompt[at].parts))
        candidates = tuple(Candidate(parts=parts) for parts in answers)
        yield Record(id=name, prompt=tuple(prompt), candidates=candidates, feedback=feedback)


def _turn(turn: Any, waiting: Waiting, field: str) -> Message:
    """Return one turn, {from, value} or {role, content}."""
    if not isinstance(turn, dict) or not ({"from", "value"} <= turn.keys() or {"role", "content"} <= turn.keys()):
        raise RowError(field, "wrong type", f"expected {{'from', 'value'}} or {{'role', 'content'}}; found {turn!r:.60}")
    role, content = (turn["from"], turn["value"]) if "from" in turn else (turn["role"], turn["content"])
    if role not in ROLES:
        raise RowError(field, "wrong value", f"role {role!r} is not read; expected one of {', '.join(ROLES)}")
    return Message(role=ROLES[role], parts=waiting.filled(content, field))
