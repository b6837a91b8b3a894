"""Importers of public sets of text preferences: HH-RLHF, UltraFeedback, OpenAssistant's trees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from polyalign.records.importing.base import Importer, Row, annotated, pair, ranked, require, text, user
from polyalign.records.importing.media import IncomingMedia
from polyalign.records.schema import Candidate, Message, Record, TextPart
from polyalign.records.trl import RowError

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


class HHRLHF(Importer):
    """Anthropic's HH-RLHF: ``chosen`` and ``rejected`` as whole dialogues, ``Human:`` and ``Assistant:`` in turn; they may differ
    in their last answer only, and what comes before it is the prompt."""

    columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        chosen, rejected = (_dialogue(text(rows[0], column), column) for column in self.columns)
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        if not shared or chosen[shared].role != "assistant" or len(chosen) != shared + 1 or len(rejected) != shared + 1:
            raise RowError("rejected", "no shared prompt", f"the dialogues part after {shared} turns, not at their last answers")
        yield pair(name, tuple(chosen[:shared]), chosen[shared].parts, rejected[shared].parts)


def _dialogue(dialogue: str, column: str) -> list[Message]:
    pieces = _TURN.split(dialogue)
    if pieces[0].strip() or len(pieces) < 3:
        raise RowError(column, "no dialogue", f"expected turns that begin 'Human:' and 'Assistant:'; found {dialogue!r:.60}")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(role=roles[who], parts=(TextPart(text=said),)) for who, said in zip(pieces[1::2], pieces[2::2])]


class UltraFeedback(Importer):
    """UltraFeedback: ``instruction`` and ``completions`` with ``annotations`` {aspect: {Rating, Rationale}} on 1 to 5, which
    become ratings and critiques. Ranked by the mean rating, as in the binarised sets, and not by ``overall_score``, which is
    known to be wrong for some rows."""

    columns: ClassVar[tuple[str, ...]] = ("instruction", "completions")

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        yield annotated(name, user(text(rows[0], "instruction")), rows[0]["completions"], critique="critique")


class OpenAssistant(Importer):
    """OpenAssistant (oasst1, oasst2): a row is a message (``message_id``, ``parent_id``, ``text``, ``role``, ``rank``), or a
    whole tree (``prompt`` with ``replies`` inside replies). Every prompt with two or more ranked answers gives a record; rank 0
    is best."""

    group_by: ClassVar[str | None] = "message_tree_id"

    def check(self, row: Row) -> None:
        require(row, ("prompt",) if "prompt" in row else ("message_id", "parent_id", "text", "role", "rank"))

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        if "prompt" in rows[0]:
            for row in rows:
                yield from self._below(row["prompt"], ())
            return
        messages: dict[Any, dict[str, Any]] = {row["message_id"]: {**row, "replies": []} for row in rows}
        roots: list[dict[str, Any]] = []
        for message in messages.values():
            parent = messages.get(message["parent_id"])
            (parent["replies"] if parent else roots).append(message)
        for root in roots:
            if root["parent_id"] is not None:
                raise RowError("parent_id", "no such message", f"{root['parent_id']!r} is not in the same tree and file")
            yield from self._below(root, ())

    def _below(self, message: Mapping[str, Any], before: tuple[Message, ...]) -> Iterator[Record]:
        role = {"prompter": "user", "assistant": "assistant"}.get(message["role"])
        if role is None:
            raise RowError("role", "wrong value", f"expected 'prompter' or 'assistant'; found {message['role']!r}")
        thread = (*before, Message(role=role, parts=(TextPart(text=message["text"]),)))
        replies = [reply for reply in message.get("replies") or () if not reply.get("deleted")]
        scores = {at: -float(reply["rank"]) for at, reply in enumerate(replies) if reply.get("rank") is not None}
        if role == "user" and (ranking := ranked(scores)):
            answers = tuple(Candidate(parts=(TextPart(text=reply["text"]),)) for reply in replies)
            tags = (f"language:{message['lang']}",) if message.get("lang") else ()
            yield Record(id=f"oasst-{message['message_id']}", prompt=thread, candidates=answers, feedback=(ranking,), tags=tags)
        for reply in replies:
            yield from self._below(reply, thread)
