"""Checks a data set through and through: every line, every reference, every medium decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from polyalign.errors import MediaError, PluginError
from polyalign.plugins.specs import Spec
from polyalign.records.census import SplitCensus, leaks
from polyalign.records.files import RecordFile, open_file, splits
from polyalign.records.judgements import contrast, strict_pairs
from polyalign.records.modality import Modality
from polyalign.records.problems import Defect, Problem, media_fields
from polyalign.records.schema import Comparison, MediaRef, Message, Record, TextPart
from polyalign.records.store import MEDIA_FOLDER, BadReference


@dataclass
class Findings:
    """Every problem in file order, remarks that are no problems, and the counts of each split."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: dict[str, SplitCensus] = field(default_factory=dict)
    decoded: Counter[str] = field(default_factory=Counter)  # modality -> media decoded

    @property
    def kinds(self) -> Counter[str]:
        return Counter(problem.defect.kind for problem in self.problems)

    @property
    def shared_prompts(self) -> dict[tuple[str, str], int]:
        """Return how many prompts a training split shares with a held-out one."""
        return leaks(self.splits)


def installed_modalities() -> Mapping[str, Callable[[], Modality]]:
    """Return, by name, what makes the codec of each installed modality."""
    from polyalign.plugins.registry import registry

    return {entry.spec.name: partial(_made, entry.spec) for entry in registry().entries("modalities")}


def _made(spec: Spec) -> Modality:
    modality: Modality = spec.load()()
    return modality


def validate(
    path: Path | str,
    *,
    split: str | None = None,
    modalities: Mapping[str, Callable[[], Modality]] | None = None,
    allow_outside: bool = False,
    allow_urls: bool = False,
    report: Callable[[Problem], None] | None = None,
) -> Findings:
    """Return the findings over a file, or over all splits of a folder (or one); ``report`` hears each problem at once."""
    findings = Findings()
    media = _MediaCheck(installed_modalities() if modalities is None else modalities, findings)
    named: set[str] = set()
    for name, files in splits(path).items():
        if split is not None and name != split:
            continue
        census = findings.splits[name] = SplitCensus()
        ids: dict[str, str] = {}
        for file_path in files:
            file = open_file(file_path, allow_outside=allow_outside, allow_urls=allow_urls)
            for row, record, defects in file.scan(thorough=True):
                if record is not None:
                    census.add(record)
                    named.update(ref.sha256 for ref in record.media())
                    place = f"{file_path.name}:{file.line(row)}"
                    if (first := ids.setdefault(record.id, place)) != place:
                        defects.append(Defect("id", "duplicate id", f"id {record.id!r} is also that of {first}"))
                    defects += [*_senseless(record), *media.defects(record, file)]
                for defect in defects:
                    problem = Problem(str(file_path), file.line(row), defect)
                    findings.problems.append(problem)
                    if report:
                        report(problem)
        if not census.records and not findings.problems:
            findings.notes.append(f"split {name!r} is empty")
    media.remark()
    if Path(path).is_dir() and split is None and (unused := _unused(Path(path) / MEDIA_FOLDER, named)):
        findings.notes.append(f"{unused} file(s) in {MEDIA_FOLDER}/ are named by no record")
    return findings


def _senseless(record: Record) -> Iterator[Defect]:
    """Yield what the schema allows but nothing can be learnt from."""
    if record.prompt and _is_blank(record.prompt):
        yield Defect("prompt", "empty prompt", "holds neither text nor media")
    for number, candidate in enumerate(record.candidates):
        if candidate.prompt and _is_blank(candidate.prompt):
            yield Defect(f"candidates[{number}].prompt", "empty prompt", "holds neither text nor media")
    for number, feedback in enumerate(record.feedback):
        if isinstance(feedback, Comparison):
            pairs = list(strict_pairs(feedback))
            if pairs and all(contrast(record, *pair) is None for pair in pairs):
                yield Defect(
                    f"feedback[{number}].ranking",
                    "unrelated candidates",
                    "compares only candidates that share neither prompt nor response; nothing can be learnt from that",
                )


def _is_blank(prompt: tuple[Message, ...]) -> bool:
    return all(isinstance(part, TextPart) and not part.text.strip() for message in prompt for part in message.parts)


def _unused(folder: Path, named: set[str]) -> int:
    return sum(file.is_file() and file.name.partition(".")[0] not in named for file in folder.iterdir()) if folder.is_dir() else 0


class _MediaCheck:
    """Opens, sniffs and decodes each distinct medium once, and remembers what came of it."""

    def __init__(self, modalities: Mapping[str, Callable[[], Modality]], findings: Findings) -> None:
        self._makers, self._findings = modalities, findings
        self._codecs: dict[str, Modality | None] = {}
        self._not_decoded: dict[str, set[str]] = {}  # modality -> hashes
        self._known: dict[tuple[Path, MediaRef], list[Defect]] = {}

    def defects(self, record: Record, file: RecordFile) -> Iterator[Defect]:
        place = getattr(file.media, "root", file.path)  # the splits of one folder share its media
        for at, ref in media_fields(record):
            if (place, ref) not in self._known:
                self._known[place, ref] = list(self._examined(ref, file))
            for defect in self._known[place, ref]:
                yield Defect(f"{at}.{defect.field}" if defect.field else at, defect.kind, defect.reason)

    def remark(self) -> None:
        """Say which media could not be decoded for want of a codec."""
        for name, hashes in sorted(self._not_decoded.items()):
            self._findings.notes.append(
                f"{len(hashes)} medium(s) of modality {name!r} were hashed but not decoded: no installed plugin decodes {name!r} "
                "(see: polyalign plugins)"
            )

    def _examined(self, ref: MediaRef, file: RecordFile) -> Iterator[Defect]:
        """Yield defects whose field is relative to the reference."""
        try:
            data = file.media.read(ref)
        except BadReference as error:
            yield Defect(error.field, error.kind, str(error))
            return
        codec = self._codec(ref.modality)
        if codec is None:
            self._not_decoded.setdefault(ref.modality, set()).add(ref.sha256)
            return
        found = codec.sniff(data)
        if found is None:
            yield Defect("modality", "wrong modality", f"the bytes are not of modality {ref.modality!r}")
            return
        if found != ref.mime:
            yield Defect("mime", "wrong mime", f"the bytes are {found}, the record says {ref.mime}")
        try:
            codec.decode(data)
        except MediaError as error:
            yield Defect("", "undecodable", str(error))
            return
        self._findings.decoded[ref.modality] += 1

    def _codec(self, name: str) -> Modality | None:
        if name not in self._codecs:
            try:
                self._codecs[name] = self._makers[name]() if name in self._makers else None
            except PluginError as error:
                self._codecs[name] = None
                self._findings.notes.append(str(error))
        return self._codecs[name]
