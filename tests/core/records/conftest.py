"""Files of rows for the record tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def write_lines(tmp_path: Path):
    """Write rows (dicts, or raw bytes) as lines of a file and return its path."""

    def write(*rows: dict | bytes, name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
        return path

    return write
