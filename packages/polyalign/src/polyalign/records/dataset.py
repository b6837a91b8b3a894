"""A mixture of data sets as training examples: by index, and as an endless keyed order over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polyalign.errors import RecordError, nearest
from polyalign.randomness import keyed_seed
from polyalign.records.files import RecordFile, open_file, split_files
from polyalign.records.problems import Defect, Problem, media_fields
from polyalign.records.samples import Example, Prompt, Sample
from polyalign.records.schema import MediaPart, Record
from polyalign.records.store import BadReference, JoinedMedia
from polyalign.records.stream import shuffled, turn
from polyalign.records.views import VIEWS, about, with_mismatch

if TYPE_CHECKING:
    from polyalign.training.config import SourceConfig

PROBLEMS_KEPT = 20
MISMATCH_TRIES = 64


@dataclass
class LoadReport:
    """What reading the sources found: rows read, rows skipped as bad, and the first problems (``file:line:field: reason``)."""

    read: int = 0
    skipped: int = 0
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.skipped:
            return f"{self.read} records"
        shown = "\n".join(f"  {problem}" for problem in self.problems)
        more = "\n  ..." if self.skipped > len({(p.file, p.line) for p in self.problems}) else ""
        return f"{self.read} records, {self.skipped} skipped as bad:\n{shown}{more}"


@dataclass
class _Source:
    """One data set of the mixture: its files, and where each example comes from. No record is held."""

    name: str
    weight: Fraction
    files: list[RecordFile]
    prefix: str = ""
    file_of: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # [records kept]
    row_of: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # [records kept]
    first: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))  # [records kept + 1], running example count

    def __len__(self) -> int:
        return int(self.first[-1])


class ExampleDataset:
    """Examples of one view over a mixture of data sets. Lazy: only offsets are held, records are parsed when asked for.

    ``sources``: `training.config.SourceConfig` items. ``view``: a key of `VIEWS`. ``aspect``: use only feedback about it.
    ``tags``: use only records that carry all of them. ``resolve``: turns a source's ``path`` (``dataset:NAME``) into a
    path; by default `polyalign.assets.resolve_dataset`.

    Building it reads every record once. Bad ones (schema, media that are missing or outside the data set, repeated id)
    are skipped and listed in ``report``; more than ``max_skipped`` of them, as a share, raise `RecordError`. A source
    that gives no example at all raises too. In the unpaired view each example also gets one mismatched sample.
    Ids get their source's name in front if two sources share any. Picklable.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        view: str,
        aspect: str | None = None,
        tags: Sequence[str] = (),
        *,
        max_skipped: float = 0.01,
        resolve: Callable[[str], Path] | None = None,
    ) -> None:
        if view not in VIEWS:
            raise RecordError(f"view {view!r} is not known.{nearest(view, VIEWS)} Known: {', '.join(VIEWS)}")
        self.view, self.aspect, self.tags = view, aspect, tuple(tags)
        self.report = LoadReport()
        self._sources: list[_Source] = []
        ids: list[set[int]] = []
        for config in sources:
            source, names = self._indexed(config, resolve or _resolve)
            self._sources.append(source)
            ids.append(names)
        self._check_skipped(max_skipped)
        for source, config in zip(self._sources, sources, strict=True):
            if not len(source):
                raise RecordError(
                    f"{config.path} (split {config.split!r}) gives no example in the view {view!r}"
                    + (f" with aspect {aspect!r}" if aspect else "")
                    + (f" among records tagged {', '.join(tags)}" if tags else "")
                    + "; check the view, aspect and tags, or see `polyalign data stats`"
                )
        if sum(map(len, ids)) > len(set().union(*ids)):
            self._name_apart()
        self._ends = np.cumsum([len(source) for source in self._sources])
        self._weights = [source.weight for source in self._sources]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Example:
        """Return one example. Raises `IndexError` past the end."""
        source, local = self._locate(index)
        example = self._example(source, local)
        if self.view == "unpaired":
            other = self._mismatched(source, local, example)
            if other is not None:
                own = example.samples[0].media
                example = with_mismatch(example, other, own if other.media is own else JoinedMedia(own, other.media))
        return example

    def position(self, position: int, seed: int) -> tuple[int, int]:
        """Return (index, epoch) of the example at ``position`` of the endless stream: a pure function of its arguments.

        Sources take turns by weight; each goes through all its examples, shuffled anew (keyed) every epoch of its own.
        """
        number, count = turn(position, self._weights)
        size = len(self._sources[number])
        epoch, at = divmod(count, size)
        local = int(shuffled(size, "order", seed, number, epoch)[at])
        return int(self._ends[number]) - size + local, epoch

    def prompts(self, limit: int | None = None) -> list[Prompt]:
        """Return the distinct prompts of the examples in order of appearance, at most ``limit``, each with its media."""
        found: dict[Prompt, None] = {}
        for source in self._sources:
            for record_number in range(len(source.row_of)):
                if limit is not None and len(found) >= limit:
                    return list(found)[:limit]
                for example in self._examples(source, record_number):
                    for sample in example.samples:
                        found.setdefault(Prompt.of(sample.prompt, sample.media, sample.conditions))
        return list(found)[:limit]

    def _indexed(self, config: SourceConfig, resolve: Callable[[str], Path]) -> tuple[_Source, set[int]]:
        path = Path(resolve(config.path))
        files = [
            open_file(file, allow_outside=config.allow_outside, allow_urls=config.allow_urls)
            for file in split_files(path, config.split)
        ]
        ids: set[int] = set()
        places: list[tuple[int, int]] = []
        counts: list[int] = []
        rows = ((number, *scanned) for number, file in enumerate(files) for scanned in file.scan())
        for number, row, record, defects in islice(rows, config.limit):
            self.report.read += 1
            if record is not None:
                defects = self._unusable(record, files[number])
                if (key := keyed_seed(record.id)) in ids:
                    defects.append(Defect("id", "duplicate id", f"id {record.id!r} was used before"))
                ids.add(key)
            if record is None or defects:
                self._skip(files[number], row, defects)
                continue
            if not set(self.tags) <= set(record.tags):
                continue
            if examples := VIEWS[self.view](about(record, self.aspect), None):
                places.append((number, row))
                counts.append(len(examples))
        file_of, row_of = np.array(places, dtype=np.int64).reshape(-1, 2).T
        first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        weight = Fraction(config.weight).limit_denominator(1_000_000)
        name = path.name if path.is_dir() else path.stem
        return _Source(name, weight, files, "", file_of.astype(np.int32), row_of.copy(), first.astype(np.int64)), ids

    def _unusable(self, record: Record, file: RecordFile) -> list[Defect]:
        """Return what keeps the record's media from being found. Nothing is decoded, hashed or fetched here."""
        defects = []
        for at, ref in media_fields(record):
            try:
                file.media.check(ref)
            except BadReference as error:
                defects.append(Defect(f"{at}.{error.field}", error.kind, str(error)))
        return defects

    def _skip(self, file: RecordFile, row: int, defects: list[Defect]) -> None:
        self.report.skipped += 1
        for defect in defects:
            if len(self.report.problems) < PROBLEMS_KEPT:
                self.report.problems.append(Problem(str(file.path), file.line(row), defect))

    def _check_skipped(self, limit: float) -> None:
        if self.report.skipped > limit * self.report.read:
            share = self.report.skipped / self.report.read
            raise RecordError(
                f"{share:.1%} of the records are bad, more than data.max_skipped={limit:g} allows. {self.report}\n"
                "Mend them (`polyalign data validate` lists all), or raise data.max_skipped"
            )

    def _name_apart(self) -> None:
        names = [source.name for source in self._sources]
        for number, source in enumerate(self._sources):
            source.prefix = f"{source.name}/" if names.count(source.name) == 1 else f"{source.name}.{number}/"

    def _locate(self, index: int) -> tuple[_Source, int]:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[number]
        return source, index - (int(self._ends[number]) - len(source))

    def _example(self, source: _Source, local: int) -> Example:
        number = int(np.searchsorted(source.first, local, side="right")) - 1
        return self._examples(source, number)[local - int(source.first[number])]

    def _examples(self, source: _Source, number: int) -> list[Example]:
        """Return all examples of one kept record of a source."""
        file, row = source.files[source.file_of[number]], int(source.row_of[number])
        record, defects = file.parse(row)
        if record is None:
            raise RecordError("\n".join(str(Problem(str(file.path), file.line(row), defect)) for defect in defects))
        if source.prefix:
            record = record.model_copy(update={"id": source.prefix + record.id})
        return VIEWS[self.view](about(record, self.aspect), file.media)

    def _mismatched(self, source: _Source, local: int, example: Example) -> Sample | None:
        """Return a response of the same source that belongs to another prompt and is of the same modalities.

        The search starts at a keyed place and goes on from there; None if it finds nothing, as with a single prompt.
        """
        own = example.samples[0]
        start = keyed_seed("mismatch", own.id) % len(source)
        for offset in range(min(MISMATCH_TRIES, len(source))):
            other = self._example(source, (start + offset) % len(source)).samples[0]
            if other.prompt != own.prompt and other.response != own.response and _modalities(other) == _modalities(own):
                return other
        return None


def _modalities(sample: Sample) -> set[str]:
    return {part.media.modality if isinstance(part, MediaPart) else part.type for part in sample.response}


def _resolve(path: str) -> Path:
    from polyalign.assets import resolve_dataset

    return resolve_dataset(path)
