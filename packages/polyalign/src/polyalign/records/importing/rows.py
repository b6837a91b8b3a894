"""Rows of the files that foreign data sets come in, and which files of a folder those are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyalign.errors import RecordError

SOURCES = (".jsonl", ".json", ".parquet")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, row) of a .jsonl, .json (a list of rows) or .parquet file. Raises `RecordError` if it is none."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        rows = (row for batch in pyarrow.parquet.ParquetFile(path).iter_batches(256) for row in batch.to_pylist())
        yield from enumerate(rows, 1)
        return
    with path.open(encoding="utf-8") as file:
        lines = enumerate(file, 1) if path.suffix == ".jsonl" else enumerate(_parsed(path, 1, file.read()), 1)
        for number, line in lines:
            if isinstance(line, str) and not line.strip():
                continue
            row = _parsed(path, number, line) if path.suffix == ".jsonl" else line
            if not isinstance(row, dict):
                raise RecordError(f"{path}:{number}: expected a row of named columns; found {row!r:.60}")
            yield number, row


def _parsed(path: Path, number: int, content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}:{number + error.lineno - 1}: not JSON: {error.msg}") from error
