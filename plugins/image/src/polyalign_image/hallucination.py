"""Captions judged by rule: does the answer claim anything that is false of the picture? As an evaluator, and as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from polyalign.assets import resolve_dataset
from polyalign.errors import MediaError, RecordError
from polyalign.evaluation.base import Evaluator, Verdict
from polyalign.records.files import open_file, records_of, splits
from polyalign.records.schema import MediaPart, MediaRef, Message, Record
from polyalign.rewards.base import Judged, Reward
from polyalign_image.config import AttributeHallucinationConfig
from polyalign_image.emoji_captions import ATTRIBUTES, Truth, completeness, false_attributes, parse
from polyalign_image.modality import ImageModality


class AttributeHallucination(Evaluator):
    """Holds each answer against what is true of the picture in its prompt: the emoji's name, kind, colours and tags.

    The answer is read by the grammar of `emoji_captions`. One that cannot be read counts as a hallucination that gives
    nothing, and the notes say how many there were. Deterministic; no model. Raises `RecordError` for a prompt without a
    picture, and for a picture that is not in the data set.
    """

    def __init__(self, config: AttributeHallucinationConfig | None = None) -> None:
        self.config = config or AttributeHallucinationConfig()

    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        """Return three verdicts, a number from 0 to 1 per item.

        ``hallucination``: 1.0 if the answer claims at least one false attribute, else 0.0; lower is better.
        ``name_correct``: 1.0 if the answer gives the right name. ``complete``: the share of the true caption that it gives.
        """
        pairs = self.pairs(items)
        named = [(caption := parse(answer)) is not None and caption.name == truth.name for answer, truth in pairs]
        judge = {"judge": f"claims read by the caption grammar, checked against {self.config.data}"}
        return [
            Verdict(
                "hallucination",
                tuple(float(bool(false_attributes(*pair))) for pair in pairs),
                {**judge, **_shares(pairs)},
                better="lower",
            ),
            Verdict("name_correct", tuple(map(float, named)), judge),
            Verdict("complete", tuple(completeness(*pair) for pair in pairs), judge),
        ]

    def pairs(self, items: Sequence[Judged]) -> list[tuple[str, Truth]]:
        """Return each answer with the truth about the picture in its prompt."""
        return [(_answer(item, position), self._truth(item, position)) for position, item in enumerate(items)]

    @cached_property
    def truths(self) -> dict[str, Truth]:
        """The truth about each picture of the data set, by the picture's sha256."""
        found = splits(resolve_dataset(self.config.data))
        files = [file for split, files in found.items() if split.startswith(f"{self.config.captions}.") for file in files]
        if not files:
            raise RecordError(
                f"{self.config.data} has no split whose name begins with '{self.config.captions}.'; it has: {', '.join(found)}"
            )
        records = (record for file in files for record in records_of(open_file(file)))
        return {_picture(record.prompt, f"record {record.id!r}").sha256: _stated(record) for record in records}

    def _truth(self, item: Judged, position: int) -> Truth:
        sha256 = _picture(item.prompt, f"item {position}").sha256
        if sha256 not in self.truths:
            raise RecordError(
                f"item {position}: the picture with sha256 {sha256} is not in {self.config.data}, so nothing is known of it; "
                "judge answers about that data set's pictures, or set `data` to the one that these are from"
            )
        return self.truths[sha256]


class CaptionTruth(Reward):
    """The share of the true caption that an answer gives, less the share of attributes that it gets wrong; from -1 to 1.

    Truth and errors are those of `AttributeHallucination`. An answer that cannot be read is wrong in everything.
    """

    name = "caption_truth"

    def __init__(self, config: AttributeHallucinationConfig | None = None) -> None:
        self.judge = AttributeHallucination(config)

    def score(self, items: Sequence[Judged]) -> list[float]:
        return [
            completeness(answer, truth) - (len(set(false_attributes(answer, truth))) / len(ATTRIBUTES) if parse(answer) else 1.0)
            for answer, truth in self.judge.pairs(items)
        ]


def _shares(pairs: Sequence[tuple[str, Truth]]) -> dict[str, str]:
    """How many answers could not be read, and of those that could, how many are wrong in each attribute."""
    if not pairs:
        return {}
    wrong = [false_attributes(*pair) for pair in pairs if parse(pair[0]) is not None]
    notes = {"unparseable": f"{1 - len(wrong) / len(pairs):.3f}"}
    if wrong:
        notes |= {
            f"false {attribute}": f"{sum(attribute in each for each in wrong) / len(wrong):.3f}" for attribute in ATTRIBUTES
        }
    return notes


def _answer(item: Judged, position: int) -> str:
    if not isinstance(item.output, str):
        raise MediaError(f"item {position} is a {type(item.output).__name__}; expected the text of a caption")
    return item.output


def _picture(prompt: Sequence[Message], where: str) -> MediaRef:
    """The last picture of a prompt."""
    parts = [part for message in prompt for part in message.parts if isinstance(part, MediaPart)]
    pictures = [part.media for part in parts if part.media.modality == ImageModality.name]
    if not pictures:
        raise RecordError(f"{where} has no picture in its prompt; expected a media part of modality {ImageModality.name!r}")
    return pictures[-1]


def _stated(record: Record) -> Truth:
    try:
        return Truth.from_conditions(record.conditions)
    except KeyError as missing:
        raise RecordError(
            f"record {record.id!r} has no condition {missing}; a true caption states name, kind, colours, other_colours and tags"
        ) from None
