"""Build `datasets/emoji-captions`: captions, questions and preferences about real emoji, every claim checkable.

    python3 tools/dev.py data emoji-captions        # half a minute

The emoji come from `emoji_table.py`, the grammar of captions from `polyalign_image.emoji_captions`, the wrong captions from
`emoji_caption_edits.py`. Labels are constructed by rule. Running it again writes the same bytes (with the Pillow named in
CARD.md).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from emoji_caption_card import card
from emoji_caption_edits import Picture, WrongValues, drop_or_add, noisy, pick, pictures_of, swap
from emoji_styles import store_pictures
from emoji_table import load_table

from polyalign.randomness import keyed_seed
from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Provenance, Record, Scalar, TextPart
from polyalign.records.store import MediaStore
from polyalign_image.emoji_captions import render

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "datasets/emoji-captions"
DESCRIBE = "Describe the picture."
ANNOTATOR = "rule:attributes"
ASPECTS = {"swap": "hallucination", "add": "hallucination", "drop": "completeness"}
NOISY_COPIES = 2
LICENCES = {"noto": "Apache-2.0 AND MIT", "twemoji": "Apache-2.0 AND CC-BY-4.0 AND MIT"}
SOURCE = Provenance(source="emojibase", method="rule")
Maker = Callable[[Sequence[Picture]], Iterator[Record]]


def record(
    name: str,
    picture: Picture,
    answers: Sequence[Candidate],
    truth: Mapping[str, Scalar],
    tags: tuple[str, ...] = (),
    *,
    question: str = DESCRIBE,
    feedback: tuple[Comparison, ...] = (),
) -> Record:
    """Return a record whose prompt is the picture and a question, with what is true of the picture as conditions."""
    return Record(
        id=f"{name}-{picture.name}",
        prompt=(Message(role="user", parts=(MediaPart(media=picture.media), TextPart(text=question))),),
        candidates=tuple(answers),
        feedback=feedback,
        group=picture.emoji.subgroup,
        tags=(f"group:{picture.emoji.group}", *tags),
        conditions={**truth, "style": picture.style},
        provenance=SOURCE,
        licence=LICENCES[picture.style],
    )


def answer(text: str, **conditions: Scalar) -> Candidate:
    return Candidate(parts=(TextPart(text=text),), conditions=conditions)


def mixed(pictures: Sequence[Picture], *key: str) -> list[Picture]:
    """Return the pictures in keyed order: the first n of a file are then a sample of all, not its faces."""
    return sorted(pictures, key=lambda picture: keyed_seed("emoji-captions order", *key, picture.name))


def captions(pictures: Sequence[Picture]) -> Iterator[Record]:
    for picture in mixed(pictures, "captions"):
        yield record("caption", picture, [answer(render(picture.truth.caption))], picture.truth.conditions())


def questions(pictures: Sequence[Picture]) -> Iterator[Record]:
    """One per emoji, about either picture. In turn: is it of its kind (yes), of another (no), what is it, what colour is it."""
    wrong = WrongValues(pictures)
    asked = [picture for picture in pictures if picture.style == pick(tuple(LICENCES), "asked", picture.truth.name)]
    for number, picture in enumerate(mixed(asked, "questions")):
        truth = picture.truth
        about, question, reply = (
            ("kind", f"Is this a kind of {truth.kind}?", "yes"),
            ("kind", f"Is this a kind of {wrong.draw('kind', picture, 'question')}?", "no"),
            ("name", "What is this?", truth.name),
            ("colour", "What colour is it mostly?", truth.colours[0]),
        )[number % 4]
        yield record("question", picture, [answer(reply)], {"name": truth.name}, (f"question:{about}",), question=question)


def preferences(pictures: Sequence[Picture]) -> Iterator[Record]:
    """In turn a swap, and an omission or addition; of each two, in turn the true caption comes first and second."""
    wrong = WrongValues(pictures)
    for number, picture in enumerate(mixed(pictures, "preferences")):
        edit = drop_or_add(picture, wrong) if number % 2 else swap(picture, wrong)
        best = number // 2 % 2
        both = [answer(render(picture.truth.caption)), answer(edit.text, edit=edit.kind, attribute=edit.attribute)]
        yield record(
            edit.kind,
            picture,
            both[::-1] if best else both,
            picture.truth.conditions(),
            (f"edit:{edit.kind}",),
            feedback=(Comparison(ranking=((best,), (1 - best,)), aspect=ASPECTS[edit.kind], annotator=ANNOTATOR),),
        )


def noisy_captions(pictures: Sequence[Picture]) -> Iterator[Record]:
    """Three captions per picture: the true one, and two with their own number of wrong attributes."""
    wrong = WrongValues(pictures)
    for copy in range(1 + NOISY_COPIES):
        for picture in mixed(pictures, "noisy", str(copy)):
            noise, text = noisy(picture, wrong, copy) if copy else (0, render(picture.truth.caption))
            caption = answer(text, noise=noise)
            yield record(f"noisy-{copy}", picture, [caption], {"name": picture.truth.name}, (f"noise:{noise}",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", type=Path, default=ROOT / ".cache/npm", help="where the npm tarballs are kept")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    table = load_table(arguments.cache_dir)
    shutil.rmtree(arguments.target / "media", ignore_errors=True)
    pictures = pictures_of(table, store_pictures(table, MediaStore(arguments.target)))
    by_split = {split: [picture for picture in pictures if picture.emoji.split == split] for split in ("train", "test")}
    makers: dict[str, tuple[Maker, Sequence[Picture]]] = {
        f"{prefix}{split}.jsonl": (make, members)
        for prefix, make in (("", preferences), ("captions.", captions), ("questions.", questions), ("noisy.", noisy_captions))
        for split, members in by_split.items()
    }
    made = {name: list(make(members)) for name, (make, members) in makers.items()}
    for name, records in made.items():
        write_jsonl(arguments.target / name, records)
    (arguments.target / "CARD.md").write_text(card(table, made, arguments.target), encoding="utf-8")
    print(", ".join(f"{name}: {len(records)}" for name, records in made.items()))


if __name__ == "__main__":
    main()
