"""What an importer is: rows of a foreign data set in, records out. Light: no pyarrow, no torch here."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from polyalign.records.files import splits
from polyalign.records.importing.media import IncomingMedia
from polyalign.records.importing.rows import SOURCES, read_rows
from polyalign.records.problems import WHOLE
from polyalign.records.schema import Candidate, Comparison, Critique, MediaPart, Message, Rating, Record, TextPart
from polyalign.records.trl import RowError

Row = Mapping[str, Any]
Side = str | Sequence[TextPart | MediaPart]


class Importer(ABC):
    """Subclass and say which columns a row must have and what records it gives.

    ``columns``: a row without one of them is refused, with what was found and what was expected.
    ``group_by``: rows of equal value in this column come together (one picture a row, all of one prompt a record); they
    are collected from the whole file first.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    group_by: ClassVar[str | None] = None

    @abstractmethod
    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        """Return the records of one row (or of the rows of one group). ``name``: an id of its own, for want of a better one.

        Raises `RowError` with the field at fault; the row is then reported and left out.
        """

    def files(self, source: Path) -> dict[str, tuple[Path, ...]]:
        """Return the files of each split of ``source``, a file or a folder. Default: .jsonl, .json and .parquet by name."""
        return splits(source, SOURCES)

    def rows(self, file: Path) -> Iterator[tuple[int, Row]]:
        """Yield (number from 1, row) of one of these files. Raises `RecordError` if it cannot be read."""
        yield from read_rows(file)

    def check(self, row: Row) -> None:
        """Raise `RowError` if the row lacks columns."""
        require(row, self.columns)


def require(row: Row, columns: Sequence[str]) -> None:
    """Raise `RowError` naming the columns that are missing, those that are there, and what the importer reads."""
    missing = [column for column in columns if column not in row]
    if missing:
        raise RowError(
            WHOLE,
            "missing column",
            f"expected the columns {', '.join(columns)}; missing: {', '.join(missing)}; found: {', '.join(sorted(row))}",
        )


def user(*sides: Side) -> tuple[Message, ...]:
    """Return one user message; a side is text or parts."""
    return (Message(role="user", parts=parts_of(*sides)),)


def parts_of(*sides: Side) -> tuple[TextPart | MediaPart, ...]:
    found: list[TextPart | MediaPart] = []
    for side in sides:
        found += [TextPart(text=side)] if isinstance(side, str) else side
    return tuple(found)


def pair(name: str, prompt: tuple[Message, ...], chosen: Side, rejected: Side, **fields: Any) -> Record:
    """Return a record of two responses, the first preferred; ``fields``: more of the record's."""
    sides = (Candidate(parts=parts_of(chosen)), Candidate(parts=parts_of(rejected)))
    return Record(id=name, prompt=prompt, candidates=sides, feedback=(Comparison(ranking=((0,), (1,))),), **fields)


def text(row: Row, column: str) -> str:
    """Return a column's text. Raises `RowError` if it holds anything else."""
    if not isinstance(row[column], str):
        raise RowError(column, "wrong type", f"expected text; found {row[column]!r:.60}")
    return str(row[column])


def one_of(row: Row, column: str, values: Sequence[Any]) -> Any:
    """Return a column's value if it is one of these. Raises `RowError`."""
    if row[column] not in values:
        raise RowError(column, "wrong value", f"expected one of {', '.join(map(repr, values))}; found {row[column]!r:.60}")
    return row[column]


def parsed(row: Row, column: str) -> Any:
    """Return a column that holds JSON as text, or is parsed already."""
    value = row[column]
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise RowError(column, "not JSON", f"expected JSON text; found {value!r:.60} ({error})") from error


def listed(value: Any) -> list[dict[str, Any]]:
    """Return a sequence of structures, which some writers store as one structure of sequences."""
    if isinstance(value, Mapping):
        return [dict(zip(value, items)) for items in zip(*value.values())]
    return [dict(item) for item in value]


def number(value: Any) -> float | None:
    """Return a number, also from text; None where there is none ("N/A")."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def ranked(scores: Mapping[int, float], **fields: Any) -> Comparison | None:
    """Return the comparison that orders candidates by score, higher is better, equal ones tied; None for fewer than two."""
    if len(scores) < 2:
        return None
    tiers = [
        tuple(candidate for candidate, score in scores.items() if score == value)
        for value in sorted(set(scores.values()), reverse=True)
    ]
    return Comparison(ranking=tuple(tiers), **fields)


def annotated(name: str, prompt: tuple[Message, ...], completions: Any, critique: str | None = None) -> Record:
    """Return a record of completions {model, response, annotations{aspect: {Rating, Rationale}}}, as UltraFeedback has them.

    ``critique`` names the field of a completion that speaks of it as a whole, where there is one.
    Ratings lie on 1 to 5 and become ratings, rationales critiques; completions are ranked by their mean rating. A rating that
    is no number ("N/A") counts in nothing.
    """
    given = listed(completions)
    feedback: list[Comparison | Rating | Critique] = []
    means: dict[int, float] = {}
    for at, completion in enumerate(given):
        values = []
        for aspect, note in (completion.get("annotations") or {}).items():
            rating, rationale = (note or {}).get("Rating"), (note or {}).get("Rationale")
            if (value := number(rating)) is not None:
                feedback.append(Rating(candidate=at, value=value, scale=(1.0, 5.0), aspect=aspect))
                values.append(value)
            if isinstance(rationale, str) and rationale.strip():
                feedback.append(Critique(candidate=at, parts=parts_of(rationale), aspect=aspect))
        if values:
            means[at] = sum(values) / len(values)
        if critique and completion.get(critique):
            feedback.append(Critique(candidate=at, parts=completion[critique]))
    ranking = ranked(means)
    candidates = tuple(Candidate(parts=text(item, "response"), producer=item.get("model")) for item in given)
    return Record(id=name, prompt=prompt, candidates=candidates, feedback=(*((ranking,) if ranking else ()), *feedback))
