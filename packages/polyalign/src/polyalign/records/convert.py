"""From one layout of a data set to another: JSON Lines with a media folder, Parquet with media inside, TRL columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from polyalign.errors import RecordError
from polyalign.records import jsonl
from polyalign.records.files import SUFFIXES, RecordFile, open_file, records_of, splits
from polyalign.records.problems import media_fields
from polyalign.records.samples import MediaSource
from polyalign.records.schema import Record
from polyalign.records.store import MediaStore
from polyalign.records.trl import RowError, to_trl

TrlLayout = Literal["pairs", "unpaired", "sft"]


def convert(
    source: Path | str, target: Path | str, *, suffix: str = ".parquet", trl: TrlLayout | None = None, split: str | None = None
) -> dict[Path, int]:
    """Write ``source`` (file or folder) to ``target`` and return how many rows each new file holds.

    A ``target`` that ends in .jsonl or .parquet is one file, for one split; otherwise a folder that gets one
    ``<split><suffix>`` per split. ``trl`` writes conversational TRL columns (text only) instead of records. Media go into
    the media folder beside a JSON Lines file, or into the rows of a Parquet file. Stops at the first bad record.
    """
    source, target = Path(source), Path(target)
    found = {name: files for name, files in splits(source).items() if split in (None, name)}
    if not found:
        raise RecordError(f"{source} has no split {split!r}; it has: {', '.join(splits(source))}")
    if target.suffix in SUFFIXES and len(found) > 1:
        raise RecordError(f"{source} has the splits {', '.join(found)}, {target} is one file: name a folder, or choose one split")
    written: dict[Path, int] = {}
    for name, paths in found.items():
        new = target if target.suffix in SUFFIXES else target / f"{name}{suffix}"
        if new.resolve() in {path.resolve() for path in paths}:
            raise RecordError(f"{new} would be written over itself; name another target")
        files = [open_file(path) for path in paths]
        written[new] = _write_trl(new, files, trl) if trl else _write_records(new, files)
    return written


def _write_records(target: Path, files: list[RecordFile]) -> int:
    if target.suffix == ".jsonl":
        store = MediaStore(target.parent)
        return jsonl.write_jsonl(target, (moved(record, file.media, store) for file in files for record in records_of(file)))
    from polyalign.records import parquet

    rows = (parquet.to_row(record, file.media) for file in files for record in records_of(file))
    return parquet.write_rows(target, rows, parquet.SCHEMA)


def _write_trl(target: Path, files: list[RecordFile], layout: str) -> int:
    def rows() -> Iterator[dict[str, Any]]:
        for file in files:
            for record in records_of(file):
                try:
                    yield from to_trl(record, layout)
                except RowError as error:
                    raise RecordError(f"{file.path}: record {record.id!r}: {error.defect.reason}") from error

    if target.suffix == ".jsonl":
        return jsonl.write_rows(target, rows())
    from polyalign.records import parquet

    return parquet.write_rows(target, rows())


def moved(record: Record, source: MediaSource, store: MediaStore) -> Record:
    """Return the record with its media copied into ``store``, where references need no ``uri``."""
    references = {ref for _, ref in media_fields(record)}
    for ref in references:
        store.add(source.read(ref), ref.modality, ref.mime)
    if all(ref.uri is None for ref in references):
        return record
    return Record.model_validate(_without_uri(record.model_dump(mode="json")))


def _without_uri(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_uri(item) for key, item in value.items() if not (key == "uri" and "sha256" in value)}
    return [_without_uri(item) for item in value] if isinstance(value, list) else value
