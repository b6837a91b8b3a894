"""Records in JSON Lines: one record (or one row of TRL columns) per line, UTF-8, media in a store beside the file."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from polyalign.errors import RecordError
from polyalign.records.atomic import atomic_write
from polyalign.records.problems import WHOLE, Defect, Problem, defects_of
from polyalign.records.schema import Record
from polyalign.records.store import MediaStore
from polyalign.records.trl import RowError, from_trl, is_trl

_BOM = b"\xef\xbb\xbf"


def record_of(row: Mapping[str, Any], fallback_id: str) -> tuple[Record | None, list[Defect]]:
    """Return the record of a row that was already parsed, or every defect found in it."""
    try:
        return (from_trl(row, fallback_id) if is_trl(row) else Record.model_validate(row)), []
    except RowError as error:
        return None, [error.defect]
    except ValidationError as error:
        return None, defects_of(error)


def parse_line(line: bytes, fallback_id: str) -> tuple[Record | None, list[Defect]]:
    """Return the record of one line, or every defect found in it."""
    try:
        text = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        return None, [Defect(WHOLE, "encoding", f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}")]
    try:
        row = json.loads(text, object_pairs_hook=_distinct_keys)
    except _RepeatedKey as error:
        return None, [Defect(WHOLE, "json", f"key {error.args[0]!r} is given twice in one object")]
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        return None, [Defect(WHOLE, "json", f"not valid JSON: {reason}{where}")]
    if not isinstance(row, dict):
        return None, [Defect(WHOLE, "wrong type", f"expected an object {{...}}; found {type(row).__name__}")]
    return record_of(row, fallback_id)


class _RepeatedKey(ValueError):
    pass


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in pairs:
        if key in row:
            raise _RepeatedKey(key)
        row[key] = value
    return row


def read_jsonl(path: Path | str) -> Iterator[tuple[int, Record]]:
    """Yield (line number from 1, record), one line in memory at a time. Raises `RecordError` at the first bad line."""
    path = Path(path)
    for number, line in _lines(path):
        record, defects = parse_line(line, f"{path.stem}-{number}")
        if record is None:
            raise RecordError("\n".join(str(Problem(str(path), number, defect)) for defect in defects))
        yield number, record


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, content) of every line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield number, line


def compact(record: Record) -> dict[str, Any]:
    """Return the record as JSON data without defaults, text parts as bare strings; reading it back gives an equal record."""

    def shortened(value: Any) -> Any:
        if isinstance(value, list):
            return [shortened(item) for item in value]
        if not isinstance(value, dict):
            return value
        kept = {
            key: item if key == "conditions" else shortened(item)
            for key, item in value.items()
            if item is not None and not (key in _OPTIONAL and len(item) == 0)
        }
        if kept.get("aspect") == "overall":
            del kept["aspect"]
        parts = kept.get("parts", [])
        if len(parts) == 1 and parts[0]["type"] == "text":
            kept["parts"] = parts[0]["text"]
        return kept

    row: dict[str, Any] = shortened(record.model_dump(mode="json"))
    if not record.prompt:
        row.pop("prompt", None)
    for candidate, dumped in zip(record.candidates, row["candidates"], strict=True):
        if candidate.prompt == ():
            dumped["prompt"] = []
    return row


_OPTIONAL = {"feedback", "tags", "conditions", "incomparable"}


def write_jsonl(path: Path | str, records: Iterable[Record]) -> int:
    """Write the records, one a line, and return how many. The file appears whole or not at all."""
    count = 0
    with atomic_write(Path(path)) as file:
        for record in records:
            file.write(json.dumps(compact(record), ensure_ascii=False, allow_nan=False).encode() + b"\n")
            count += 1
    return count


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write plain rows (TRL columns), one a line, and return how many."""
    count = 0
    with atomic_write(Path(path)) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            count += 1
    return count


class JsonlFile:
    """Random access to the rows of a JSON Lines file by an index of line offsets; no parsed record is kept. Picklable."""

    def __init__(self, path: Path | str, media: MediaStore | None = None) -> None:
        self.path = Path(path)
        self.media = media or MediaStore(self.path.parent)
        self._starts, self._lengths, self._lines = array("Q"), array("Q"), array("Q")
        position = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.removeprefix(_BOM if number == 1 else b"").strip():
                    self._starts.append(position)
                    self._lengths.append(len(line))
                    self._lines.append(number)
                position += len(line)
            self._stamp = _stamp(file.fileno())

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, row: int) -> int:
        """Return the line number, from 1, of a row."""
        return self._lines[row]

    def parse(self, row: int, *, thorough: bool = False) -> tuple[Record | None, list[Defect]]:
        """Return the record of a row, or every defect found in it; ``thorough`` also finds JSON keys given twice.

        Raises `RecordError` if the file was changed since it was opened.
        """
        # Opened anew each time: a handle shared with forked loader workers would share its position.
        with self._opened() as file:
            return self._parsed(file, row, thorough)

    def scan(self, *, thorough: bool = False) -> Iterator[tuple[int, Record | None, list[Defect]]]:
        """Yield (row, record or None, defects) of every row in order."""
        with self._opened() as file:
            for row in range(len(self)):
                yield row, *self._parsed(file, row, thorough)

    def _opened(self) -> BinaryIO:
        file = self.path.open("rb")
        if _stamp(file.fileno()) != self._stamp:
            file.close()
            raise RecordError(f"{self.path} was changed while it was being read; start again")
        return file

    def _parsed(self, file: BinaryIO, row: int, thorough: bool) -> tuple[Record | None, list[Defect]]:
        file.seek(self._starts[row])
        line = file.read(self._lengths[row])
        if self._lines[row] == 1:
            line = line.removeprefix(_BOM)
        if not thorough and b'"candidates"' in line:
            try:  # pydantic's own parser is several times faster; the slow path explains what is wrong
                return Record.model_validate_json(line), []
            except ValidationError:
                pass
        return parse_line(line, f"{self.path.stem}-{self._lines[row]}")


def _stamp(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
