"""Records in Parquet: typed columns, media embedded as bytes in the row. `datasets.load_dataset("parquet", ...)` reads them.

Column ``media`` holds ``{sha256, bytes}`` of every medium of the row; ``conditions`` are JSON text, since Arrow has no
column of mixed scalars. A ``uri`` is dropped when media are embedded: the bytes are here now.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from polyalign.errors import RecordError
from polyalign.records.atomic import atomic_write
from polyalign.records.jsonl import record_of
from polyalign.records.problems import WHOLE, Defect, Problem
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaRef, Record
from polyalign.records.store import BadReference, SpillingMedia, verified

# Small row groups keep random access cheap: a row is read with its whole group.
GROUP_ROWS = 256
GROUP_BYTES = 8 * 1024 * 1024
CACHE_BYTES = 128 * 1024 * 1024

_MEDIUM = pa.struct(
    [("modality", pa.string()), ("sha256", pa.string()), ("mime", pa.string()), ("length", pa.int64()), ("uri", pa.string())]
)
_PARTS = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string()), ("media", _MEDIUM)]))
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("parts", _PARTS)]))
_CANDIDATE = pa.struct([("parts", _PARTS), ("prompt", _MESSAGES), ("producer", pa.string()), ("conditions", pa.string())])
_FEEDBACK = pa.struct(
    [
        ("type", pa.string()),
        ("candidate", pa.int64()),
        ("aspect", pa.string()),
        ("annotator", pa.string()),
        ("ranking", pa.list_(pa.list_(pa.int64()))),
        ("incomparable", pa.list_(pa.int64())),
        ("strength", pa.float64()),
        ("value", pa.float64()),
        ("scale", pa.list_(pa.float64())),
        ("parts", _PARTS),
        ("before", pa.int64()),
        ("after", pa.int64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("unit", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", _MESSAGES),
        ("candidates", pa.list_(_CANDIDATE)),
        ("feedback", pa.list_(_FEEDBACK)),
        ("group", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("conditions", pa.string()),
        ("provenance", pa.struct([("source", pa.string()), ("method", pa.string()), ("notes", pa.string())])),
        ("licence", pa.string()),
        ("schema_version", pa.int64()),
        ("media", pa.list_(pa.struct([("sha256", pa.string()), ("bytes", pa.binary())]))),
    ]
)


def to_row(record: Record, media: MediaSource | None) -> dict[str, Any]:
    """Return the Parquet row of a record with its media. Raises `MediaError` if one cannot be read."""
    if media is None and record.media():
        raise RecordError(f"record {record.id!r} has media, but no source to read them from was given")
    row = record.model_dump(mode="json")
    row["media"] = [{"sha256": ref.sha256, "bytes": media.read(ref)} for ref in record.media()] if media else []
    row["conditions"] = json.dumps(row["conditions"])
    for candidate in row["candidates"]:
        candidate["conditions"] = json.dumps(candidate["conditions"])
    embedded: dict[str, Any] = _embedded(row)
    return embedded


def _embedded(value: Any) -> Any:
    """Drop every ``uri`` of a media reference."""
    if isinstance(value, dict):
        return {key: _embedded(item) for key, item in value.items() if key != "uri"}
    return [_embedded(item) for item in value] if isinstance(value, list) else value


def from_row(row: Mapping[str, Any], fallback_id: str) -> tuple[Record | None, list[Defect]]:
    """Return the record of a row as Parquet (or `datasets`) gives it, or every defect found. TRL columns are read too."""
    plain = _without_nulls({key: value for key, value in row.items() if key != "media" or "candidates" not in row})
    holders = [("", plain)]
    if isinstance(plain.get("candidates"), list):
        holders += [(f"candidates[{at}].", item) for at, item in enumerate(plain["candidates"]) if isinstance(item, dict)]
    for prefix, holder in holders:
        if isinstance(holder.get("conditions"), str):
            try:
                holder["conditions"] = json.loads(holder["conditions"])
            except json.JSONDecodeError as error:
                return None, [Defect(f"{prefix}conditions", "json", f"not valid JSON: {error.msg}")]
    return record_of(plain, fallback_id)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def write_parquet(path: Path | str, records: Iterable[Record], media: MediaSource | None = None) -> int:
    """Write the records with their media embedded and return how many. The file appears whole or not at all."""
    return write_rows(path, (to_row(record, media) for record in records), SCHEMA)


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]], schema: Any = None) -> int:
    """Write plain rows and return how many. Without an Arrow schema (TRL columns), the first rows decide the types."""
    count = 0
    with atomic_write(Path(path)) as file:
        writer = None
        try:
            for group in _groups(rows):
                table = pa.Table.from_pylist(group, schema=schema)
                schema = table.schema
                writer = writer or pq.ParquetWriter(file, schema, compression="zstd")
                writer.write_table(table)
                count += len(group)
            if writer is None:
                writer = pq.ParquetWriter(file, schema or pa.schema([]))
        finally:
            if writer is not None:
                writer.close()
    return count


def _groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(dict(row))
        media = row.get("media")
        size += sum(len(item["bytes"]) for item in media) if isinstance(media, list) else 0
        if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def read_parquet(path: Path | str) -> Iterator[tuple[int, Record]]:
    """Yield (row number from 1, record), one row group in memory at a time. Raises `RecordError` at the first bad row."""
    path = Path(path)
    for row, record, defects in ParquetFile(path).scan():
        if record is None:
            raise RecordError("\n".join(str(Problem(str(path), row + 1, defect)) for defect in defects))
        yield row + 1, record


class _RowGroups:
    """Columns of the row groups of one file, read on demand. Kept up to ``CACHE_BYTES``, least recently used out first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()
        try:
            metadata = self._opened().metadata
        except (pa.ArrowException, OSError) as error:
            raise RecordError(f"{path} is not a readable Parquet file: {error}") from error
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.names: list[str] = self._opened().schema_arrow.names

    def _forget(self) -> None:
        self._file: Any = None
        self._process = 0
        self._kept: OrderedDict[tuple[int, tuple[str, ...]], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": 0, "_kept": OrderedDict()}

    def _opened(self) -> Any:
        if self._process != os.getpid():  # a handle must not be shared with forked loader workers
            self._forget()
            self._file, self._process = pq.ParquetFile(self.path), os.getpid()
        return self._file

    def value(self, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
        """Return the named columns of one row as plain Python values."""
        group = int(np.searchsorted(self.first, row, side="right")) - 1
        opened, key = self._opened(), (group, columns)
        if key not in self._kept:
            # Arrow's thread pool does not survive a fork.
            self._kept[key] = opened.read_row_group(group, columns=list(columns), use_threads=False)
            while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        row_of_group = row - int(self.first[group])
        return dict(self._kept[key].slice(row_of_group, 1).to_pylist()[0])

    def values(self, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Yield the named columns of every row in order, a group at a time."""
        for group in range(len(self.first) - 1):
            yield from self._opened().read_row_group(group, columns=list(columns), use_threads=False).to_pylist()

    def media_hashes(self) -> Iterator[list[str]]:
        """Yield, row by row, the hashes of the embedded media, without reading the media."""
        for values in self.values(("media.list.element.sha256",)):
            yield [item["sha256"] for item in values["media"] or ()]


class ParquetMedia(SpillingMedia):
    """The media embedded in a Parquet file, by hash. Picklable; `path` writes a medium to a temporary file."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self._groups = _RowGroups(Path(path))
        # 16 bytes per medium: the head of each hash, sorted, and the row that holds it.
        heads, rows = [], []
        if "media" in self._groups.names and "candidates" in self._groups.names:
            for row, hashes in enumerate(self._groups.media_hashes()):
                heads += [int(sha256[:16], 16) for sha256 in hashes]
                rows += [row] * len(hashes)
        order = np.argsort(np.array(heads, dtype=np.uint64), kind="stable")
        self._heads = np.array(heads, dtype=np.uint64)[order]
        self._rows = np.array(rows, dtype=np.int64)[order]

    def read(self, ref: MediaRef) -> bytes:
        """Return the bytes, with length and hash checked. Raises `BadReference`."""
        for row in self._holders(ref):
            for item in self._groups.value(row, ("media",))["media"]:
                if item["sha256"] == ref.sha256 and item["bytes"] is not None:
                    return verified(item["bytes"], ref, f"medium {ref.sha256[:12]}... of {self._groups.path.name}")
        raise self._missing(ref)

    def check(self, ref: MediaRef) -> None:
        """Raise `BadReference` if no row names the medium."""
        if not self._holders(ref):
            raise self._missing(ref)

    def _holders(self, ref: MediaRef) -> list[int]:
        head = np.uint64(int(ref.sha256[:16], 16))
        start, end = (int(np.searchsorted(self._heads, head, side=side)) for side in ("left", "right"))
        return [int(row) for row in self._rows[start:end]]

    def _missing(self, ref: MediaRef) -> BadReference:
        return BadReference(f"medium {ref.sha256[:12]}... is not embedded in {self._groups.path.name}", "sha256", "missing")


class ParquetFile:
    """Random access to the rows of a Parquet file; no parsed record is kept. Picklable."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._groups = _RowGroups(self.path)
        self._columns = tuple(name for name in self._groups.names if name != "media" or "candidates" not in self._groups.names)
        self.media = ParquetMedia(self.path)

    def __len__(self) -> int:
        return int(self._groups.first[-1])

    def line(self, row: int) -> int:
        """Return the row number counted from 1."""
        return row + 1

    def parse(self, row: int, *, thorough: bool = False) -> tuple[Record | None, list[Defect]]:
        """Return the record of a row, or every defect found in it. It always is ``thorough``."""
        try:
            values = self._groups.value(row, self._columns)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            return None, [Defect(WHOLE, "parquet", f"not readable: {error}")]
        return from_row(values, f"{self.path.stem}-{row + 1}")

    def scan(self, *, thorough: bool = False) -> Iterator[tuple[int, Record | None, list[Defect]]]:
        """Yield (row, record or None, defects) of every row in order. Raises `RecordError` where the file itself is damaged."""
        row = -1
        try:
            for row, values in enumerate(self._groups.values(self._columns)):
                yield row, *from_row(values, f"{self.path.stem}-{row + 1}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{self.path} is damaged after row {row + 1}: {error}") from error
