"""From a path to the record files behind it: one file, or a folder with one file (or numbered shards) per split."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from polyalign.errors import RecordError, nearest
from polyalign.records.jsonl import JsonlFile
from polyalign.records.problems import Defect, Problem
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaRef, Record
from polyalign.records.store import MediaStore

SUFFIXES = (".jsonl", ".parquet")
_SHARD = re.compile(r"^(?P<split>.+)-\d{5}-of-\d{5}$")


class CheckedMedia(MediaSource, Protocol):
    """A source that can tell cheaply whether a medium is there."""

    def check(self, ref: MediaRef) -> None:
        """Raise `BadReference` if the medium cannot be found. Reads, hashes and fetches nothing."""
        ...


class RecordFile(Protocol):
    """Random access to the rows of one file, and the source of its media. Picklable."""

    path: Path

    @property
    def media(self) -> CheckedMedia: ...

    def __len__(self) -> int: ...

    def line(self, row: int) -> int:
        """Return the line (JSONL) or row (Parquet) number as a user counts it, from 1."""
        ...

    def parse(self, row: int, *, thorough: bool = False) -> tuple[Record | None, list[Defect]]:
        """Return the record of a row, or every defect found in it; ``thorough`` also finds JSON keys given twice."""
        ...

    def scan(self, *, thorough: bool = False) -> Iterator[tuple[int, Record | None, list[Defect]]]:
        """Yield (row, record or None, defects) of every row in order: quicker than `parse` row by row."""
        ...


def open_file(path: Path | str, *, allow_outside: bool = False, allow_urls: bool = False) -> RecordFile:
    """Open a .jsonl or .parquet file. Raises `RecordError` if it is missing or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise RecordError(f"{path} does not exist; give a {' or '.join(SUFFIXES)} file, or a folder of them")
    if path.suffix == ".jsonl":
        return JsonlFile(path, MediaStore(path.parent, allow_outside=allow_outside, allow_urls=allow_urls))
    if path.suffix == ".parquet":
        from polyalign.records.parquet import ParquetFile  # pyarrow takes a while to import

        return ParquetFile(path)
    raise RecordError(f"{path} has the extension {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")


def splits(path: Path | str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, tuple[Path, ...]]:
    """Return the files of each split of a folder (or of its ``data`` folder), in order of name; a file is a split of its own.

    ``train.jsonl``, ``train.parquet`` and ``train-00000-of-00004.parquet`` ... belong to the split "train".
    """
    path = Path(path)
    if path.is_file():
        return {_split_of(path): (path,)}
    if not path.is_dir():
        raise RecordError(f"{path} does not exist; give a {' or '.join(suffixes)} file, or a folder of them")
    found: dict[str, tuple[Path, ...]] = {}
    for folder in (path, path / "data"):
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.suffix in suffixes and file.is_file() and not file.name.startswith("."):
                found[_split_of(file)] = (*found.get(_split_of(file), ()), file)
        if found:
            break
    if not found:
        raise RecordError(f"{path} holds no {' or '.join(suffixes)} file")
    for split, files in found.items():
        if len(files) > 1 and any(_SHARD.match(file.stem) is None for file in files):
            raise RecordError(f"split {split!r} of {path} is given twice: {', '.join(file.name for file in files)}; keep one")
    return found


def split_files(path: Path | str, split: str) -> tuple[Path, ...]:
    """Return the files of one split of a folder; a path to a file is that file, whatever the split."""
    path = Path(path)
    found = splits(path)
    if path.is_file():
        return next(iter(found.values()))
    if split not in found:
        raise RecordError(f"{path} has no split {split!r}.{nearest(split, found)} It has: {', '.join(found)}")
    return found[split]


def _split_of(file: Path) -> str:
    shard = _SHARD.match(file.stem)
    return shard["split"] if shard else file.stem


def records_of(file: RecordFile) -> Iterator[Record]:
    """Yield the records of an open file in order. Raises `RecordError` at the first bad row, with every defect of it."""
    for row, record, defects in file.scan():
        if record is None:
            raise RecordError("\n".join(str(Problem(str(file.path), file.line(row), defect)) for defect in defects))
        yield record
