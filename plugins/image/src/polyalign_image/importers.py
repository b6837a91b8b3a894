"""Importers of public preferences about pictures (and clips) that a model has described."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from polyalign.records.importing.base import Importer, Row, annotated, pair, parsed, text, user
from polyalign.records.importing.media import IncomingMedia
from polyalign.records.problems import WHOLE
from polyalign.records.schema import Critique, Record
from polyalign.records.trl import RowError


class Described(Importer):
    """A picture, a question, a chosen and a rejected answer: RLAIF-V, SPA-VL."""

    columns: ClassVar[tuple[str, ...]] = ("image", "question", "chosen", "rejected")

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row = rows[0]
        prompt = user([media.part(row["image"], "image", "image")], text(row, "question"))
        tags = tuple(f"{column}:{row[column]}" for column in ("ds_name", "origin_dataset") if row.get(column))
        yield pair(name, prompt, text(row, "chosen"), text(row, "rejected"), tags=tags)


class RLHFV(Described):
    """RLHF-V: as `Described`, with question and answers in ``text``, which is JSON."""

    columns: ClassVar[tuple[str, ...]] = ("image", "text")

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        inner = parsed(rows[0], "text")
        missing = [key for key in ("question", "chosen", "rejected") if not isinstance(inner, dict) or key not in inner]
        if missing:
            raise RowError("text", "missing key", f"expected question, chosen and rejected; missing {', '.join(missing)}")
        yield from super().records([{**rows[0], **inner}], media, name)


class VLFeedback(Importer):
    """VLFeedback: completions with ratings from 1 to 5 and rationales per aspect, ranked by the mean rating."""

    columns: ClassVar[tuple[str, ...]] = ("prompt", "completions")

    def check(self, row: Row) -> None:
        super().check(row)
        if "image" not in row and "img_path" not in row:
            raise RowError(WHOLE, "missing column", f"expected image or img_path; found: {', '.join(sorted(row))}")

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row = rows[0]
        column = "image" if row.get("image") else "img_path"
        prompt = user([media.part(row[column], "image", column)], text(row, "prompt"))
        yield annotated(name, prompt, row["completions"])


class MMRLHF(Importer):
    """MM-RLHF's pairs: a picture or a clip, and the reasons why an answer was chosen or rejected, which become critiques."""

    columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row = rows[0]
        given = [media.part(row[kind], kind, kind) for kind in ("image", "video") if row.get(kind)]
        if not given:
            raise RowError(WHOLE, "no medium", f"expected image or video; found: {', '.join(sorted(row))}")
        made = pair(
            name, user(given, text(row, "prompt").replace("<image>", "").lstrip()), text(row, "chosen"), text(row, "rejected")
        )
        reasons = (row.get("chosen_reason"), row.get("rejected_reason"))
        critiques = tuple(Critique(candidate=at, parts=reason) for at, reason in enumerate(reasons) if reason)
        yield made.model_copy(update={"feedback": (*made.feedback, *critiques)})
