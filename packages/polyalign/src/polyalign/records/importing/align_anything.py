"""align-anything-200k: one importer for all its subsets, whose column names drift from one to the next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from polyalign.records.importing.base import Importer, Row, parts_of, user
from polyalign.records.importing.media import IncomingMedia
from polyalign.records.problems import WHOLE
from polyalign.records.schema import Candidate, Comparison, Critique, Rating, Record
from polyalign.records.trl import RowError


@dataclass(frozen=True)
class Subset:
    """``given``: column and modality of the prompt's medium. ``answers``: columns (without the number) and modality of what
    makes up a response."""

    given: tuple[str, str] | None
    answers: tuple[tuple[str, str], ...]


SUBSETS = {
    "text-image-to-text-image": Subset(("image", "image"), (("text_response", "text"), ("image_response", "image"))),
    "text-image-to-text": Subset(("image", "image"), (("response", "text"),)),
    "text-audio-to-text": Subset(("audio_path", "audio"), (("response", "text"),)),
    "text-video-to-text": Subset(("video_path", "video"), (("response", "text"),)),
    "text-to-image": Subset(None, (("image", "image"),)),
    "text-to-video": Subset(None, (("video", "video"),)),
    "text-to-audio": Subset(None, (("response", "audio"),)),  # told from text-to-text by what the columns hold
    "text-to-text": Subset(None, (("response", "text"),)),
}
# Letters in front of `_rationale_1` and of per-aspect preferences: the first of these aspects that the row rates.
LETTERS = {
    "p": ("prompt_following",),
    "o": ("objective_rules", "audio_quality", "video_objective_reality"),
    "c": ("clarity", "content_coherence"),
    "a": ("aesthetics", "aesthetic", "consistency"),
    "i": ("information_richness",),
    "s": ("safety",),
    "t": ("temporal_consistency",),
    "m": ("motion_naturalness",),
}
SCALE = (0.0, 3.0)
_RATE = re.compile(r"^(\w+?)_rates?_([12])$")
_RATIONALE = re.compile(r"^([a-z])_rationale_([12])$")
_SIDE = re.compile(r"^([a-z]|overall)_(?:response|image|audio|video)$")
_FEEDBACK = re.compile(r"^text_([12])_feedback$")


class AlignAnything(Importer):
    """Two candidates, an overall preference, and per aspect a preference, ratings from 0 to 3 and rationales: all of it is read.

    A preference that is neither 1 nor 2 is a tie. ``refine_prompt`` becomes a condition of that name.
    """

    def check(self, row: Row) -> None:
        self.subset(row)

    def subset(self, row: Row) -> Subset:
        """Return the subset whose columns the row has. Raises `RowError` with all of them if none fits."""
        has = {column for column, value in row.items() if value is not None}
        if has & {"question", "prompt"}:
            for name, subset in SUBSETS.items():
                wanted = {f"{column}_{side}" for column, _ in subset.answers for side in (1, 2)}
                heard = name != "text-to-audio" or not isinstance(row.get("response_1"), str)
                if wanted <= has and heard and (subset.given is None or subset.given[0] in has):
                    return subset
        known = "; ".join(
            f"{name}: {', '.join([*([subset.given[0]] if subset.given else []), *(f'{c}_1/2' for c, _ in subset.answers)])}"
            for name, subset in SUBSETS.items()
        )
        raise RowError(
            WHOLE,
            "missing column",
            f"expected question or prompt, and the columns of a subset ({known}); found: {', '.join(sorted(has))}",
        )

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> Iterable[Record]:
        row = rows[0]
        subset = self.subset(row)
        given = [[media.part(row[subset.given[0]], subset.given[1], subset.given[0])]] if subset.given else []
        question = row.get("question") or row.get("prompt")
        candidates = []
        for side in (1, 2):
            values = [(row[f"{column}_{side}"], modality, f"{column}_{side}") for column, modality in subset.answers]
            parts = parts_of(*(v if m == "text" else [media.part(v, m, column)] for v, m, column in values))
            makers = (f"res_{side}_from", f"model_{side}", f"image_{side}_model")
            candidates.append(Candidate(parts=parts, producer=next((row[m] for m in makers if row.get(m)), None)))
        refined = {"refine_prompt": str(row["refine_prompt"])} if row.get("refine_prompt") else {}
        yield Record(
            id=name,
            prompt=user(*given, str(question)),
            candidates=tuple(candidates),
            feedback=tuple(_feedback(row)),
            conditions=refined,
        )


def _feedback(row: Row) -> Iterable[Any]:
    rated = {found[1] for column in row if (found := _RATE.match(column))}

    def aspect(letter: str) -> str:
        if letter == "overall":
            return letter
        return next((name for name in LETTERS.get(letter, ()) if name in rated), letter)

    for column, value in row.items():
        if value is None:
            continue
        if found := _SIDE.match(column):
            if not isinstance(value, int):
                raise RowError(column, "wrong type", f"expected 1, 2 or another whole number for a tie; found {value!r:.60}")
            tiers = {1: ((0,), (1,)), 2: ((1,), (0,))}.get(value, ((0, 1),))
            yield Comparison(ranking=tiers, aspect=aspect(found[1]))
        elif found := _RATE.match(column):
            yield Rating(candidate=int(found[2]) - 1, value=value, scale=SCALE, aspect=found[1])
        elif (found := _RATIONALE.match(column)) and str(value).strip():
            yield Critique(candidate=int(found[2]) - 1, parts=str(value), aspect=aspect(found[1]))
        elif (found := _FEEDBACK.match(column)) and str(value).strip():
            yield Critique(candidate=int(found[1]) - 1, parts=str(value))
