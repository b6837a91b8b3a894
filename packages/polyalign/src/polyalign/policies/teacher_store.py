"""A teacher's next-token distributions on disk: written once, row by row, read by every step without the teacher.

A store is a folder. ``store.json`` says whose distributions these are and how they are kept; each ``<hash>.safetensors``, named
by its own bytes, holds some rows: at every scored position the likeliest token ids, their log-probabilities and that of
all other tokens together. Files are written under a temporary name and renamed, so a killed writer loses only the rows of
the file it was about to write. Reading maps the files into memory and touches nothing but the rows asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import LongTensor, Tensor

from polyalign.errors import TrainingError
from polyalign.policies.base import Batch
from polyalign.policies.completion_mask import Encoded
from polyalign.policies.token_collator import with_token_targets
from polyalign.records.atomic import atomic_write, write_text

HEADER, VERSION = "store.json", 1
FLOOR = -1e4  # log-probability of what cannot happen: finite, so that 0 times it is 0; its exponential is 0


@dataclass(frozen=True)
class Header:
    """Whose distributions a store holds. Rows of another teacher, number of tokens or precision belong into another store.

    ``teacher``: fingerprint of its weights; ``reference``: of the teacher before preference tuning, or None. ``tokens``: hash
    of the tokenizer's vocabulary; ``vocabulary``: how many ids can occur. ``top_k``: how many are kept per position.
    ``dtype``: of log-probabilities.
    """

    teacher: str
    reference: str | None
    tokens: str
    vocabulary: int
    top_k: int
    dtype: str
    version: int = VERSION

    @property
    def id_type(self) -> type[np.unsignedinteger[Any]]:
        return np.uint16 if self.vocabulary <= 2**16 else np.uint32

    @property
    def bytes_per_position(self) -> int:
        """Return what one scored position takes on disk."""
        number = np.dtype(self.dtype).itemsize
        teachers = 1 if self.reference is None else 2
        return self.top_k * np.dtype(self.id_type).itemsize + teachers * (self.top_k + 1) * number


@dataclass(frozen=True)
class Row:
    """What teachers say at the T scored positions of one response: ``ids`` ``[T, K]``, log-probabilities ``[T, K + 1]`` of the
    teacher and, where there is one, of its reference; the last column is that of all other tokens together."""

    ids: np.ndarray
    teacher: np.ndarray
    reference: np.ndarray | None = None


class TeacherStore:
    """Rows by `row_key`. With a ``header`` the folder is made, or must be of that header, else `TrainingError` is raised; without
    one it must exist. Picklable."""

    def __init__(self, folder: Path, header: Header | None = None) -> None:
        self.folder = folder
        self._files: dict[Path, Any] = {}
        self._places: dict[str, tuple[Path, int, int]] = {}
        self.header = self._checked(header)
        for path in sorted(folder.glob("*.safetensors")):
            self._index(path)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, rows: Mapping[str, Row]) -> None:
        """Write rows as one file, whole or not at all."""
        found = list(rows.values())
        arrays: dict[str, np.ndarray] = {
            "ends": np.cumsum([len(row.ids) for row in found], dtype=np.int64),
            "ids": np.concatenate([row.ids for row in found]).astype(self.header.id_type),
            "teacher": self._stored([row.teacher for row in found]),
        }
        if self.header.reference is not None:
            arrays["reference"] = self._stored([cast(np.ndarray, row.reference) for row in found])
        content = save(arrays, metadata={"keys": json.dumps(list(rows))})
        path = self.folder / f"{_digest(content)}.safetensors"
        with atomic_write(path) as file:
            file.write(content)
        self._index(path)

    def read(self, key: str) -> Row:
        """Return one row, log-probabilities in float32, summing to 1. Raises `KeyError` where there is none."""
        path, start, end = self._places[key]
        file = self._open(path)

        def log_probs(name: str) -> np.ndarray:
            kept = np.maximum(file.get_slice(name)[start:end].astype(np.float32), FLOOR)
            total: np.ndarray = np.logaddexp.reduce(kept, axis=-1, keepdims=True)  # half precision rounds: not quite 0
            return kept - total  # type: ignore[no-any-return]

        reference = log_probs("reference") if self.header.reference is not None else None
        return Row(file.get_slice("ids")[start:end].astype(np.int64), log_probs("teacher"), reference)

    def attach(self, batch: Batch, rows: Sequence[Encoded]) -> Batch:
        """Return the batch with the teacher's distributions as token targets; ``rows`` are the token ids of its samples."""
        count, scored, top = len(rows), batch.mask.shape[2], self.header.top_k
        ids = torch.zeros(count, scored, top, dtype=torch.long)
        teacher = torch.zeros(count, scored, top + 1)
        reference = torch.zeros_like(teacher) if self.header.reference is not None else None
        for number, row in enumerate(rows):
            try:
                kept = self.read(row_key(row))
            except KeyError as missing:
                raise TrainingError(
                    f"the teacher has not read sample {batch.samples[number].id!r} as the student sees it; run `polyalign teach` "
                    f"again with this recipe (store: {self.folder})"
                ) from missing
            length = len(kept.ids)
            ids[number, :length] = torch.from_numpy(kept.ids)
            teacher[number, :length] = torch.from_numpy(kept.teacher)
            if reference is not None:
                reference[number, :length] = torch.from_numpy(kept.reference)
        values = teacher[..., :-1].exp()
        return with_token_targets(batch, cast(LongTensor, ids), values, teacher=teacher, teacher_reference=reference)

    def drop_damaged(self) -> list[str]:
        """Remove files whose bytes are not those that were written; return their names. Their rows count as missing."""
        damaged = []
        for path in sorted(self.folder.glob("*.safetensors")):
            if _digest(path.read_bytes()) != path.stem:
                damaged.append(path.name)
                self._files.pop(path, None)
                self._places = {key: place for key, place in self._places.items() if place[0] != path}
                path.unlink()
        return damaged

    def _stored(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        stored: np.ndarray = np.maximum(np.concatenate(rows), FLOOR).astype(self.header.dtype)
        return stored

    def _checked(self, wanted: Header | None) -> Header:
        path = self.folder / HEADER
        if not path.is_file():
            if wanted is None:
                raise TrainingError(f"{str(self.folder)!r} is no teacher store; run `polyalign teach` with this recipe")
            write_text(path, json.dumps(asdict(wanted), indent=1) + "\n")
            return wanted
        found = json.loads(path.read_text(encoding="utf-8"))
        expected = asdict(wanted) if wanted is not None else found
        if found != expected or found.get("version") != VERSION:
            other = [
                f"{name} is {found.get(name)!r}, here {value!r}" for name, value in expected.items() if found.get(name) != value
            ]
            why = "; ".join(other) or f"version {found.get('version')!r}"
            raise TrainingError(
                f"the teacher store {str(self.folder)!r} is of another kind: {why}. Delete it, or name another folder"
            )
        return Header(**found)

    def _index(self, path: Path) -> None:
        try:
            file = self._open(path)
            keys = json.loads(file.metadata()["keys"])
            ends = file.get_tensor("ends").tolist()
        except (
            SafetensorError,
            KeyError,
            TypeError,
        ):  # cut short or foreign: its rows count as missing
            self._files.pop(path, None)
            return
        for key, start, end in zip(keys, [0, *ends[:-1]], ends, strict=True):
            self._places[key] = (path, start, end)

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = safe_open(path, framework="np")
        return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}


def row_key(row: Encoded) -> str:
    """Return a hash of everything a teacher reads of one row: token ids, media, and what else the embeddings depend on."""
    media = [medium.key for medium in row.media]
    content = json.dumps([row.prompt, row.response, media, repr(row.tag)])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def rows_of(mask: Tensor, ids: Tensor, teacher: Tensor, reference: Tensor | None) -> list[Row]:
    """Cut positions ``[P, ...]``, row by row where ``mask`` ``[N, T]`` is True, into the rows of a batch."""
    lengths = mask.sum(-1).tolist()
    pieces = [value.cpu().split(lengths) if value is not None else [None] * len(lengths) for value in (ids, teacher, reference)]
    return [
        Row(own.numpy(), said.float().numpy(), before.float().numpy() if before is not None else None)
        for own, said, before in zip(*pieces, strict=True)
    ]


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
