"""A self-contained HTML page of records: media inside, feedback in words. For looking at data before training on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from polyalign.errors import PolyalignError
from polyalign.records.files import RecordFile, open_file, records_of, split_files, splits
from polyalign.records.judgements import desirability, unit_value
from polyalign.records.modality import Modality
from polyalign.records.samples import MediaSource
from polyalign.records.schema import (
    Comparison,
    Critique,
    Feedback,
    MediaPart,
    Message,
    Rating,
    Record,
    Refinement,
    Segment,
    TextPart,
)


@dataclass(frozen=True)
class Piece:
    """One part as the template shows it: text to be escaped, or HTML that a modality made."""

    text: str = ""
    html: str = ""
    missing: str = ""


def preview(
    path: Path | str,
    *,
    split: str | None = None,
    limit: int = 50,
    modalities: Mapping[str, Callable[[], Modality]] | None = None,
) -> str:
    """Return the page for the first ``limit`` records of a split (by default the first split, "train" if there is one)."""
    from jinja2 import Environment, PackageLoader

    if modalities is None:
        from polyalign.records.validation import installed_modalities

        modalities = installed_modalities()
    names = splits(path)
    chosen = split or ("train" if "train" in names else next(iter(names)))
    files = [open_file(file) for file in split_files(path, chosen)]
    show = _Shower(modalities)
    cards = [show.card(record, file.media) for record, file in islice(_records(files), limit)]
    # Autoescape everything: records come from anywhere. Only what a modality renders is passed as HTML.
    environment = Environment(loader=PackageLoader("polyalign.records", "templates"), autoescape=True)
    total = sum(len(file) for file in files)
    title = f"{Path(path).resolve().name} · {chosen}"
    return environment.get_template("preview.html").render(title=title, cards=cards, total=total, splits=list(names))


def _records(files: list[RecordFile]) -> Iterable[tuple[Record, RecordFile]]:
    return ((record, file) for file in files for record in records_of(file))


class _Shower:
    """Turns records into what the template loops over."""

    def __init__(self, modalities: Mapping[str, Callable[[], Modality]]) -> None:
        self._makers = modalities
        self._codecs: dict[str, Modality] = {}

    def card(self, record: Record, media: MediaSource) -> dict[str, Any]:
        labels = desirability(record)
        names = [letter(number) for number in range(len(record.candidates))]
        return {
            "id": record.id,
            "group": record.group,
            "tags": record.tags,
            "conditions": record.conditions,
            "licence": record.licence,
            "provenance": record.provenance,
            "prompt": self._messages(record.prompt, media),
            "candidates": [
                {
                    "name": names[number],
                    "label": labels[number],
                    "producer": candidate.producer,
                    "conditions": candidate.conditions,
                    "prompt": self._messages(candidate.prompt or (), media),
                    "pieces": [self._piece(part, media) for part in candidate.parts],
                    "ratings": [
                        {"aspect": f.aspect, "value": f.value, "scale": f.scale, "percent": round(100 * unit_value(f))}
                        for f in record.feedback
                        if isinstance(f, Rating) and f.candidate == number
                    ],
                }
                for number, candidate in enumerate(record.candidates)
            ],
            "feedback": [self._feedback(feedback, names, media) for feedback in record.feedback if feedback.type != "rating"],
        }

    def _feedback(self, feedback: Feedback, names: list[str], media: MediaSource) -> dict[str, Any]:
        return {
            "kind": feedback.type,
            "words": in_words(feedback, names),
            "pieces": [self._piece(part, media) for part in feedback.parts] if isinstance(feedback, Critique) else [],
            "aspect": None if isinstance(feedback, Refinement) else feedback.aspect,
            "strength": feedback.strength if isinstance(feedback, Comparison) else None,
            "annotator": feedback.annotator,
        }

    def _messages(self, messages: tuple[Message, ...], media: MediaSource) -> list[dict[str, Any]]:
        return [{"role": m.role, "pieces": [self._piece(part, media) for part in m.parts]} for m in messages]

    def _piece(self, part: TextPart | MediaPart, media: MediaSource) -> Piece:
        if isinstance(part, TextPart):
            return Piece(text=part.text)
        ref = part.media
        what = f"{ref.modality}, {ref.mime}, {ref.length} bytes"
        try:
            if ref.modality not in self._codecs:
                if ref.modality not in self._makers:
                    return Piece(missing=f"{what}: no installed plugin shows {ref.modality!r}")
                self._codecs[ref.modality] = self._makers[ref.modality]()
            return Piece(html=self._codecs[ref.modality].preview_html(media.read(ref), ref.mime))
        except PolyalignError as error:
            return Piece(missing=f"{what}: {error}")


def letter(number: int) -> str:
    """Return A ... Z, then A1 ... Z1 and so on: how the page names a candidate."""
    return ascii_uppercase[number % 26] + (str(number // 26) if number >= 26 else "")


def in_words(feedback: Feedback, names: list[str]) -> str:
    """Return one piece of feedback in a few words, candidates by the given names: ``A > B = C``."""
    if isinstance(feedback, Comparison):
        order = " > ".join(" = ".join(names[index] for index in tier) for tier in feedback.ranking)
        aside = ", ".join(names[index] for index in feedback.incomparable)
        return "; ".join(words for words in (order, f"not comparable: {aside}" if aside else "") if words)
    if isinstance(feedback, Rating):
        low, high = feedback.scale
        return f"{names[feedback.candidate]} rated {feedback.value:g} on {low:g} to {high:g}"
    if isinstance(feedback, Refinement):
        return f"{names[feedback.before]} was refined into {names[feedback.after]}"
    if isinstance(feedback, Segment):
        sort = "good" if feedback.value > 0 else "bad" if feedback.value < 0 else "neutral"
        span = f"from {feedback.start:g} to {feedback.end:g} {feedback.unit}"
        return f"{names[feedback.candidate]} is {sort} ({feedback.value:+g}) {span}"
    return f"on {names[feedback.candidate]}"
