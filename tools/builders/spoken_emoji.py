"""Build `datasets/spoken-emoji`: the names of real emoji spoken by espeak-ng in many voices, and preferences by rule.

    python3 tools/dev.py data spoken-emoji        # two minutes; needs the program espeak-ng (Debian: apt-get install espeak-ng)

The emoji are those of `emoji_table.py` (so of `emoji-styles`) whose names have one or two words. Who speaks which name how is
drawn by keyed hashes. The same versions of espeak-ng and libsndfile write the same bytes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from emoji_table import Emoji, load_table
from spoken_emoji_card import card

from polyalign.randomness import keyed_seed
from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, MediaRef, Message, Provenance, Record, Scalar, TextPart
from polyalign.records.store import MediaStore
from polyalign_audio.modality import Clip

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "datasets/spoken-emoji"
RATE, MIME = 16_000, "audio/ogg"
GROUPS = ("animals-nature", "food-drink", "objects", "travel-places", "activities")
SPOKEN = {"train": 320, "test": 48}  # emoji of each split
VOICES = {  # split of the voice: who: espeak-ng's names
    "train": {
        "man": ("en-us", "en-us+m1", "en-gb+m2", "en-gb-scotland+m7"),
        "woman": ("en-us+f2", "en-gb+f3", "en-gb-x-rp+f4", "en-us+f1"),
    },
    "test": {"man": ("en-gb-x-gbclan+m4", "en-us+m5"), "woman": ("en-gb-scotland+f5", "en-us+linda")},
}
SPEEDS = {"slow": 90, "normal": 155, "fast": 270}  # words per minute
PITCHES = {"low": 10, "normal": 50, "high": 90}  # espeak-ng's scale from 0 to 99
ASKED = {  # aspect: (how it is asked for, what follows, what does not)
    "speed": (("slowly", {"speed": "slow"}, {"speed": "fast"}), ("quickly", {"speed": "fast"}, {"speed": "slow"})),
    "pitch": (
        ("in a high voice", {"pitch": "high"}, {"pitch": "low"}),
        ("in a low voice", {"pitch": "low"}, {"pitch": "high"}),
    ),
}
TRANSCRIBE = "What is said?"
ANNOTATOR = "rule:espeak-settings"
SILENT, MARGIN = 0.01, 0.03  # of the peak; seconds kept around the speech
PEAK = 0.5
COMPRESSION = 0.95  # of libsndfile's scale: about 24 kbit/s
LICENCE = "MIT"


@dataclass(frozen=True)
class Speech:
    """What is said, and how. ``who``: man or woman; ``speed`` and ``pitch``: a key of `SPEEDS` and of `PITCHES`."""

    words: str
    voice: str
    who: str
    speed: str = "normal"
    pitch: str = "normal"

    def conditions(self) -> dict[str, Scalar]:
        return {"words": self.words, "voice": self.voice, "who": self.who, "speed": self.speed, "pitch": self.pitch}


@cache
def spoken(speech: Speech) -> bytes:
    """Return the Ogg Opus file of one utterance, without the silence around it, at one peak."""
    settings = ["-v", speech.voice, "-s", str(SPEEDS[speech.speed]), "-p", str(PITCHES[speech.pitch])]
    made = subprocess.run(["espeak-ng", *settings, "--stdout", speech.words], check=True, capture_output=True).stdout
    samples, rate = soundfile.read(io.BytesIO(made), dtype="float32")
    loud = np.flatnonzero(np.abs(samples) > SILENT * np.abs(samples).max())
    margin = round(MARGIN * rate)
    clip = Clip(samples[max(0, loud[0] - margin) : loud[-1] + margin], rate).at(RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, clip.samples * (PEAK / clip.peak), RATE, format="OGG", subtype="OPUS", compression_level=COMPRESSION)
    return buffer.getvalue()


def pick(options: Sequence[str], *key: str) -> str:
    return options[keyed_seed("spoken-emoji", *key) % len(options)]


def chosen(table: Sequence[Emoji]) -> dict[str, list[Emoji]]:
    """Return the emoji of each split whose names are one or two plain words, in keyed order."""
    fit = [
        emoji
        for emoji in table
        if emoji.group in GROUPS and len(emoji.caption.split()) <= 2 and emoji.caption.replace(" ", "").isalpha()
    ]
    fit.sort(key=lambda emoji: keyed_seed("spoken-emoji order", emoji.hexcode))
    return {split: [emoji for emoji in fit if emoji.split == split][:count] for split, count in SPOKEN.items()}


class Maker:
    """Makes the records of one split of emoji. ``voices``: the split of the voices that preferences are spoken in."""

    def __init__(self, emoji: Sequence[Emoji], voices: str, store: MediaStore) -> None:
        self.emoji, self.voices, self.store = emoji, voices, store

    def said(self, emoji: Emoji, who: str, number: int = 0, voices: str | None = None) -> Speech:
        """Return the emoji's name in its ``number``-th voice, at normal speed and pitch."""
        names = VOICES[voices or self.voices][who]
        first = names.index(pick(names, "voice", who, emoji.hexcode))
        return Speech(emoji.caption, names[(first + number) % len(names)], who)

    def media(self, speech: Speech) -> MediaRef:
        return self.store.add(spoken(speech), "audio", MIME)

    def record(
        self, name: str, emoji: Emoji, prompt: tuple[MediaPart | TextPart, ...], candidates: tuple[Candidate, ...], **more: object
    ) -> Record:
        return Record(
            id=f"{name}-{emoji.hexcode.lower()}",
            prompt=(Message(role="user", parts=prompt),),
            candidates=candidates,
            group=emoji.subgroup,
            provenance=Provenance(source="espeak-ng, emojibase", method="rule"),
            licence=LICENCE,
            **more,
        )

    def utterances(self, emoji: Emoji) -> Iterator[tuple[str, Speech]]:
        """Yield (split of the voice, speech): the name by men and women of both splits, the second of each at any speed."""
        for voices, count in (("train", 2), ("test", 1)):
            for number, who in itertools.product(range(count), ("man", "woman")):
                speech = self.said(emoji, who, number, voices)
                speed = pick(tuple(SPEEDS), "speed", speech.voice, emoji.hexcode) if number else "normal"
                yield voices, replace(speech, speed=speed)

    def plain(self, prefix: str, voices: str | None = None) -> Iterator[Record]:
        """Yield name -> clip ("speech") or clip -> name ("transcripts") rows, in voices of one split or of both."""
        for emoji in self.emoji:
            for split, speech in self.utterances(emoji):
                if voices not in (None, split):
                    continue
                clip = MediaPart(media=self.media(speech))
                asked: tuple[MediaPart | TextPart, ...] = (TextPart(text=f'Say "{emoji.caption}".'),)
                answer: tuple[MediaPart | TextPart, ...] = (clip,)
                if prefix == "transcripts":
                    asked, answer = (clip, TextPart(text=TRANSCRIBE)), (TextPart(text=emoji.caption),)
                yield self.record(
                    f"{prefix}-{speech.voice}", emoji, asked, (Candidate(parts=answer),),
                    tags=(f"voice:{split}", f"emoji:{emoji.split}"),
                    conditions={**speech.conditions(), "answer": emoji.caption, "hexcode": emoji.hexcode.lower()},
                )  # fmt: skip

    def preferences(self) -> Iterator[Record]:
        """Yield four records per emoji: the speed, pitch, voice and words that were asked for, against the opposite."""
        for number, emoji in enumerate(self.emoji):
            who, other = ("man", "woman") if number % 2 else ("woman", "man")
            base = self.said(emoji, who)
            for aspect, ways in ASKED.items():
                how, right, wrong = ways[number // 2 % 2]
                yield self.preference(aspect, how, emoji, replace(base, **right), replace(base, **wrong), number)
            yield self.preference("voice", f"in a {who}'s voice", emoji, base, self.said(emoji, other), number)
            yield self.preference("words", "", emoji, base, self.another(number, base), number)

    def another(self, number: int, base: Speech) -> Speech:
        """Return what the same voice says of the next emoji that it speaks of."""
        following = (*self.emoji[number + 1 :], *self.emoji[:number])
        return next(speech for emoji in following if (speech := self.said(emoji, base.who)).voice == base.voice)

    def preference(self, aspect: str, how: str, emoji: Emoji, right: Speech, wrong: Speech, number: int) -> Record:
        best = (number + len(aspect)) % 2
        pair = [
            Candidate(parts=(MediaPart(media=self.media(speech)),), conditions=speech.conditions()) for speech in (right, wrong)
        ]
        return self.record(
            aspect, emoji, (TextPart(text=f'Say "{emoji.caption}" {how}'.rstrip() + "."),), tuple(pair[::-1] if best else pair),
            feedback=(Comparison(ranking=((best,), (1 - best,)), aspect=aspect, annotator=ANNOTATOR),),
            tags=(f"aspect:{aspect}",),
            conditions={**right.conditions(), "answer": emoji.caption, "hexcode": emoji.hexcode.lower()},
        )  # fmt: skip


def mixed(records: Iterator[Record]) -> list[Record]:
    """Return the records in keyed order: the first n of a file are then a fair sample."""
    return sorted(records, key=lambda record: keyed_seed("spoken-emoji rows", record.id))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", type=Path, default=ROOT / ".cache/npm", help="where the npm tarballs are kept")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.target / "media", ignore_errors=True)
    store = MediaStore(arguments.target)
    emoji = chosen(load_table(arguments.cache_dir))
    train, test = Maker(emoji["train"], "train", store), Maker(emoji["test"], "test", store)
    made = {"train.jsonl": mixed(train.preferences()), "test.jsonl": mixed(test.preferences())}
    for prefix in ("speech", "transcripts"):
        made[f"{prefix}.train.jsonl"] = mixed(train.plain(prefix, "train"))
        made[f"{prefix}.test.jsonl"] = mixed(itertools.chain(train.plain(prefix, "test"), test.plain(prefix)))
    for name, records in made.items():
        write_jsonl(arguments.target / name, records)
    (arguments.target / "CARD.md").write_text(card(made, arguments.target), encoding="utf-8")
    print(", ".join(f"{name}: {len(records)}" for name, records in made.items()))


if __name__ == "__main__":
    main()
