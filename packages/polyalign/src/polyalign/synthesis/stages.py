"""Finished work, one file per result under the hash of everything it depends on: what a killed run has done stays done."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from polyalign.records.atomic import write_text
from polyalign.records.store import MediaStore

Work = TypeVar("Work")


class Stages:
    """``folder/STAGE/ab/abcd....json`` per result, written whole or not at all; media beside them in ``folder/media``.

    ``made`` and ``kept`` count, by stage, the results that were worked out and those that were there already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.media = folder, MediaStore(folder)
        self.made: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()

    def results(
        self, stage: str, work: Sequence[Work], key: Callable[[Work], Any], make: Callable[[list[Work]], list[Any]], at_once: int
    ) -> list[Any]:
        """Return one result (JSON data) per piece of work, in order. ``key(work)`` is JSON data that names everything the result
        depends on; equal keys are worked out once. ``make`` gets at most ``at_once`` pieces; its results are stored at once."""
        paths = [self._path(stage, key(one)) for one in work]
        missing = {path: one for path, one in zip(paths, work, strict=True) if not path.is_file()}
        self.kept[stage] += len(work) - len(missing)
        waiting = list(missing.items())
        for start in range(0, len(waiting), at_once):
            part = waiting[start : start + at_once]
            for (path, _), result in zip(part, make([one for _, one in part]), strict=True):
                write_text(path, json.dumps(result))
                self.made[stage] += 1
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def _path(self, stage: str, key: Any) -> Path:
        name = hashlib.blake2b(json.dumps([stage, key], sort_keys=True).encode(), digest_size=20).hexdigest()
        return self.folder / stage / name[:2] / f"{name}.json"
