"""From the files of a foreign data set to JSON Lines with a media folder; bad rows are reported, counted and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from polyalign.errors import MediaError, RecordError
from polyalign.records.importing.base import Importer, Row
from polyalign.records.importing.media import IncomingMedia
from polyalign.records.jsonl import write_jsonl
from polyalign.records.modality import Modality
from polyalign.records.problems import WHOLE, Defect, Problem, defects_of
from polyalign.records.schema import Record
from polyalign.records.store import MediaStore
from polyalign.records.trl import RowError
from polyalign.records.validation import installed_modalities


@dataclass
class Imported:
    """What was written: records per new file; rows read; the problem of every row that was left out."""

    written: dict[Path, int] = field(default_factory=dict)
    rows: int = 0
    problems: list[Problem] = field(default_factory=list)


def import_data(
    importer: Importer,
    name: str,
    source: Path | str,
    target: Path | str,
    *,
    split: str | None = None,
    media: Path | str | None = None,
    max_skipped: float = 0.01,
    modalities: Mapping[str, Callable[[], Modality]] | None = None,
    report: Callable[[Problem], None] | None = None,
) -> Imported:
    """Write every split of ``source`` (a file, or a folder, as `Importer.files` finds them) to ``target/<split>.jsonl``.

    A ``target`` that ends in .jsonl is one file, for one split. ``media``: the folder that paths in rows start from; default:
    that of the source. Raises `RecordError` if more than ``max_skipped`` of a split's rows are bad; its file is then not
    written.
    """
    source, target = Path(source), Path(target)
    there = importer.files(source)
    found = {key: files for key, files in there.items() if split in (None, key)}
    if not found:
        raise RecordError(f"{source} has no split {split!r}; it has: {', '.join(there)}")
    if target.suffix and target.suffix != ".jsonl":
        raise RecordError(f"{target} does not end in .jsonl; name a folder or a JSON Lines file")
    if target.suffix and len(found) > 1:
        raise RecordError(f"{source} has the splits {', '.join(found)}, {target} is one file: name a folder, or choose one split")
    root = Path(media) if media else source if source.is_dir() else source.parent
    store = MediaStore(target.parent if target.suffix else target)
    incoming = IncomingMedia(root, store, installed_modalities() if modalities is None else modalities)
    imported = Imported()
    for key, files in found.items():
        file = target if target.suffix else target / f"{key}.jsonl"
        if file.resolve() in {path.resolve() for path in files}:
            raise RecordError(f"{file} would be written over itself; name another target")
        split_run = _Split(importer, f"{name}-{key}", incoming, imported, report or (lambda problem: None), max_skipped)
        imported.written[file] = write_jsonl(file, split_run.records(files))
    return imported


@dataclass
class _Split:
    importer: Importer
    name: str
    media: IncomingMedia
    imported: Imported
    report: Callable[[Problem], None]
    max_skipped: float

    def records(self, files: tuple[Path, ...]) -> Iterator[Record]:
        rows = bad = 0
        first = len(self.imported.problems)
        for number, group in enumerate(self._groups(files)):
            rows += len(group)
            try:
                for _, _, row in group:
                    self.importer.check(row)
                found = list(self.importer.records([row for _, _, row in group], self.media, f"{self.name}-{number}"))
            except (RowError, ValidationError, MediaError) as error:
                bad += len(group)
                self._tell(group[0], error)
                continue
            yield from found
        self.imported.rows += rows
        if bad > self.max_skipped * rows:
            raise RecordError(
                f"{bad} of {rows} rows of {self.name!r} could not be read, more than max_skipped={self.max_skipped:g} allows; "
                f"the first: {self.imported.problems[first]}"
            )

    def _groups(self, files: tuple[Path, ...]) -> Iterator[list[tuple[Path, int, Row]]]:
        rows: Iterator[tuple[Path, int, Row]] = (
            (file, number, row) for file in files for number, row in self.importer.rows(file)
        )
        column = self.importer.group_by
        if column is None:
            yield from ([item] for item in rows)
            return
        groups: dict[Any, list[tuple[Path, int, Row]]] = {}
        for item in rows:
            groups.setdefault(item[2].get(column), []).append(item)
        yield from groups.values()

    def _tell(self, place: tuple[Path, int, Row], error: Exception) -> None:
        if isinstance(error, RowError):
            defects = [error.defect]
        elif isinstance(error, ValidationError):
            defects = defects_of(error)
        else:
            defects = [Defect(WHOLE, "bad medium", str(error))]
        problem = Problem(str(place[0]), place[1], defects[0])
        self.imported.problems.append(problem)
        self.report(problem)
