"""Importers of public human preferences between generated pictures: Pick-a-Pic, HPDv2, ImageRewardDB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from polyalign.records.importing.base import Importer, Row, number, ranked, require, text, user
from polyalign.records.importing.media import IncomingMedia
from polyalign.records.schema import Candidate, Comparison, Rating, Record
from polyalign.records.trl import RowError


class PickAPic(Importer):
    """Pick-a-Pic v1 and v2: two pictures of one caption; ``label_0`` and ``label_1`` are 1 and 0, or 0.5 each for a tie."""

    columns: ClassVar[tuple[str, ...]] = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row = rows[0]
        if row.get("has_label") is False:
            return
        labels = {side: number(row[f"label_{side}"]) for side in (0, 1)}
        if sorted(labels.values(), key=str) not in ([0.0, 1.0], [0.5, 0.5]):
            raise RowError(
                "label_0", "wrong value", f"expected 0 and 1, or 0.5 twice; found {row['label_0']!r}, {row['label_1']!r}"
            )
        annotator = str(row["user_id"]) if row.get("user_id") is not None else None
        ranking = ranked({side: value for side, value in labels.items() if value is not None}, annotator=annotator)
        yield Record(
            id=str(row.get("ranking_id") or name),
            prompt=user(text(row, "caption")),
            candidates=tuple(_picture(media, row[f"jpg_{side}"], f"jpg_{side}", row.get(f"model_{side}")) for side in (0, 1)),
            feedback=(ranking,) if ranking else (),
        )


class HPDv2(Importer):
    """HPDv2: ``train.json`` has pairs (``file_path`` and ``human_preference``, 1 preferred), ``test.json`` rankings
    (``image_path`` and ``rank``, the lowest best) with the ranking of every annotator in ``raw_annotations``."""

    def check(self, row: Row) -> None:
        paired = ("prompt", "file_path", "human_preference")
        require(row, paired if "file_path" in row else ("prompt", "image_path", "rank"))

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row = rows[0]
        column = "file_path" if "file_path" in row else "image_path"
        paths = row[column]
        if column == "file_path":
            votes = [_ranking("human_preference", row["human_preference"], paths, 1.0, None)]
        else:
            votes = [_ranking("rank", row["rank"], paths, -1.0, None)]
            for at, vote in enumerate(row.get("raw_annotations") or ()):
                who = str(vote.get("user_hash", at))
                votes.append(_ranking(f"raw_annotations[{at}].rank", vote["rank"], paths, -1.0, who))
        yield Record(
            id=name,
            prompt=user(text(row, "prompt")),
            candidates=tuple(_picture(media, path, f"{column}[{at}]") for at, path in enumerate(paths)),
            feedback=tuple(vote for vote in votes if vote),
        )


class ImageRewardDB(Importer):
    """ImageRewardDB: one picture a row; those of one ``prompt_id`` are ranked by ``rank`` (1 is best, ties happen) and rated from
    1 to 7 in ``overall_rating``, ``image_text_alignment_rating`` and ``fidelity_rating``."""

    columns: ClassVar[tuple[str, ...]] = ("image_path", "prompt_id", "prompt", "rank")
    group_by: ClassVar[str | None] = "prompt_id"
    aspects: ClassVar[dict[str, str]] = {
        "overall_rating": "overall", "image_text_alignment_rating": "alignment", "fidelity_rating": "fidelity",
    }  # fmt: skip

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        ranking = _ranking("rank", [row["rank"] for row in rows], rows, -1.0, None)
        ratings = [
            Rating(candidate=at, value=float(row[column]), scale=(1.0, 7.0), aspect=aspect)
            for at, row in enumerate(rows)
            for column, aspect in self.aspects.items()
            if row.get(column) is not None
        ]
        yield Record(
            id=str(rows[0]["prompt_id"]),
            prompt=user(text(rows[0], "prompt")),
            candidates=tuple(_picture(media, row["image_path"], "image_path") for row in rows),
            feedback=(*((ranking,) if ranking else ()), *ratings),
        )


def _picture(media: IncomingMedia, value: Any, field: str, producer: str | None = None) -> Candidate:
    return Candidate(parts=(media.part(value, "image", field),), producer=producer)


def _ranking(field: str, ranks: Sequence[Any], pictures: Sequence[Any], sign: float, who: str | None) -> Comparison | None:
    """Return the comparison by ``sign * rank``, higher is better."""
    values = [number(rank) for rank in ranks]
    if len(values) != len(pictures) or None in values:
        raise RowError(field, "wrong value", f"expected a number for each of {len(pictures)} pictures; found {ranks!r:.60}")
    return ranked({at: sign * value for at, value in enumerate(values) if value is not None}, annotator=who)
