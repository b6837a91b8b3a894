"""Foreign data sets written as they are published, and imported: what the tests of importers share."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from polyalign.errors import MediaError
from polyalign.plugins.registry import registry
from polyalign.records.importing.run import Imported, import_data
from polyalign.records.jsonl import read_jsonl
from polyalign.records.modality import Modality
from polyalign.records.schema import Comparison, MediaPart, Record
from polyalign.records.validation import installed_modalities, validate


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


class Marked(Modality):
    """A medium is any bytes behind a mark: stands in for the codecs of plugins that are not written yet."""

    def __init__(self, mark: bytes) -> None:
        self.mark = mark

    def sniff(self, data: bytes) -> str | None:
        return f"application/x-{self.mark.decode()}" if data.startswith(self.mark) else None

    def decode(self, data: bytes) -> bytes:
        if not data.startswith(self.mark):
            raise MediaError("damaged")
        return data

    def encode(self, medium: Any, mime: str) -> bytes:
        return bytes(medium)

    def cost(self, data: bytes) -> int:
        return len(data)

    def preview_html(self, data: bytes, mime: str) -> str:
        return ""


def modalities() -> Mapping[str, Callable[[], Modality]]:
    return {**installed_modalities(), "audio": lambda: Marked(b"audio"), "video": lambda: Marked(b"video")}


def written(folder: Path, rows: Sequence[Mapping[str, Any]], form: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train.{form}"
    if form == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        text = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
        path.write_text(text, encoding="utf-8")
    return path


def run_import(name: str, source: Path, target: Path, **settings: Any) -> Imported:
    return import_data(registry().get("importers", name).load()(), name, source, target, modalities=modalities(), **settings)


def imported(name: str, tmp_path: Path, rows: Sequence[Mapping[str, Any]], form: str = "jsonl") -> list[Record]:
    source = written(tmp_path / "source", rows, form)
    done = run_import(name, source.parent, tmp_path / "new")
    assert not done.problems and done.rows == len(rows)
    findings = validate(tmp_path / "new", modalities=modalities())
    assert not findings.problems, findings.problems
    return [record for _, record in read_jsonl(tmp_path / "new/train.jsonl")]


def shape(parts: Sequence[Any]) -> list[str]:
    """Texts as they are, media by modality."""
    return [part.media.modality if isinstance(part, MediaPart) else part.text for part in parts]


def ranking_of(record: Record, aspect: str = "overall") -> tuple[tuple[int, ...], ...]:
    (found,) = [f.ranking for f in record.feedback if isinstance(f, Comparison) and f.aspect == aspect]
    return found


def of_kind(record: Record, kind: type) -> list[Any]:
    return [item for item in record.feedback if isinstance(item, kind)]
