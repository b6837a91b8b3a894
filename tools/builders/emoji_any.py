"""Build `datasets/emoji-any`: preferences over six directions between a word, its picture and its sound, and plain rows of each.

    python3 tools/dev.py data emoji-any

32 things that have a one-word emoji. Pictures are made from `datasets/emoji-styles`, clips are spoken by Debian's espeak-ng. The
labels are constructed: a response is right if it is of the thing that the prompt is of. Held out are things (from preferences),
voices and placements of pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, MediaRef, Message, Provenance, Record, TextPart
from polyalign.records.store import MediaStore
from polyalign_audio.modality import AudioModality, Clip

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "datasets/emoji-any"
STYLES = ROOT / "datasets/emoji-styles"
THINGS = (
    "dog cat fox cow zebra elephant rabbit panda penguin owl frog turtle whale crab butterfly tiger rose cactus mushroom "
    "watermelon banana pineapple strawberry carrot tomato pizza rocket bus umbrella guitar key crown"
).split()
HELD_OUT_THINGS = frozenset(sorted(THINGS, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:8])
RATE, LONGEST = 8000, 1.28  # Hz, seconds
ANSWERING = ("en-us", "en-us+f3")  # the voices that the model learns to speak with
VOICES = {  # voice: (words a minute, pitch)
    "en-us": (170, 50), "en-us+f3": (170, 55), "en-gb": (160, 45), "en-gb-scotland": (170, 50), "en-029": (165, 50),
    "en-us+m3": (180, 40), "en-us+f2": (160, 60), "en-gb-x-rp+f4": (175, 50), "en-us-nyc": (170, 50), "en-gb+m5": (165, 45),
    "en-us+linda": (170, 50), "en-gb-x-gbclan+m1": (165, 50), "en-us+f5": (175, 55), "en-gb+f1": (170, 50),
    "en-us+Alicia": (170, 50), "en-us+Andy": (170, 50), "en-gb+Annie": (165, 50), "en-us+antonio": (170, 50),
    "en-gb+belinda": (170, 50), "en-us+david": (175, 45), "en-gb+Gene": (165, 50), "en-us+Lee": (170, 50),
    "en-us+m7": (170, 45), "en-gb-scotland+f2": (165, 55), "en-us+zac": (175, 50), "en-gb+rob": (165, 45),
}  # fmt: skip
SHIPPED_VOICES = ("en-us", "en-us+f3", "en-gb-scotland", "en-us+m3", "en-gb+f1")
HELD_OUT_VOICES = {"en-gb-x-gbcwmd": (170, 50), "en-us+steph": (165, 50), "en-us+michael": (175, 45)}
SIDE = 32
DIRECTIONS = ("text-to-image", "image-to-text", "text-to-audio", "audio-to-text", "image-to-audio", "audio-to-image")
LICENCE = "Apache-2.0 AND CC-BY-4.0 AND MIT"
SOURCE = Provenance(
    source="dataset:emoji-styles, espeak-ng",
    method="rule",
    notes="constructed: the better response is of the thing that the prompt is of, the worse one of another; no person was asked",
)


@dataclass(frozen=True)
class Media:
    """The media of one thing: what is asked about, in training or held out, and what is answered."""

    asked: dict[str, tuple[MediaRef, ...]]
    held_out: dict[str, tuple[MediaRef, ...]]
    answers: dict[str, tuple[MediaRef, ...]]


@cache
def drawings() -> dict[str, list[Image.Image]]:
    """Return both drawings of each thing, 64 x 64: Twemoji, then Noto."""
    found: dict[str, dict[str, Image.Image]] = {}
    store = MediaStore(STYLES)
    for split in ("train", "test"):
        for line in (STYLES / f"{split}.jsonl").read_text().splitlines():
            record = Record.model_validate(json.loads(line))
            name = record.prompt[0].parts[0].text
            if name in THINGS:
                found[name] = {
                    one.producer: Image.open(io.BytesIO(store.read(one.parts[0].media))).convert("RGB")
                    for one in record.candidates
                }
    return {name: [found[name]["twemoji"], found[name]["noto"]] for name in THINGS}


def placed(drawing: Image.Image, draw: random.Random) -> Image.Image:
    """Return the drawing made smaller and moved, on white."""
    size = draw.randint(24, 31)
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    picture.paste(
        drawing.resize((size, size), Image.Resampling.BOX), (draw.randint(0, SIDE - size), draw.randint(0, SIDE - size))
    )
    return picture


def centred(drawing: Image.Image) -> Image.Image:
    return drawing.resize((SIDE, SIDE), Image.Resampling.BOX)


def spoken(word: str, voice: str, speed: int, pitch: int) -> Clip:
    """Return what espeak-ng says, without the silence around it, at 8 kHz."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    samples, rate = soundfile.read(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout), dtype="float32")
    clip = Clip(samples, rate).at(RATE)
    loud = np.flatnonzero(np.abs(clip.samples) > 0.01)
    return Clip(clip.samples[loud[0] : loud[-1] + 1][: int(LONGEST * RATE)], RATE)


def stored(store: MediaStore) -> dict[str, Media]:
    """Write the media of every thing."""
    audio, found = AudioModality(), {}

    def clips(name: str, voices: dict[str, tuple[int, int]]) -> tuple[MediaRef, ...]:
        said = [spoken(name, voice, *how) for voice, how in voices.items()]
        return tuple(store.add(audio.encode(clip, "audio/flac"), "audio", "audio/flac") for clip in said)

    def pictures(made: list[Image.Image]) -> tuple[MediaRef, ...]:
        return tuple(store.add(as_png(one), "image", "image/png") for one in made)

    for name in THINGS:
        draw = random.Random(name)
        both = drawings()[name]
        moved = [[placed(drawing, draw) for drawing in both] for _ in range(5)]
        found[name] = Media(
            asked={
                "audio": clips(name, {voice: VOICES[voice] for voice in SHIPPED_VOICES}),
                "image": pictures([one for pair in moved[:3] for one in pair]),
            },
            held_out={"audio": clips(name, HELD_OUT_VOICES), "image": pictures(moved[3] + moved[4])},
            answers={
                "audio": clips(name, {voice: VOICES[voice] for voice in ANSWERING}),
                "image": pictures([centred(drawing) for drawing in both]),
            },
        )
    return found


def as_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def asked(name: str, direction: str, media: tuple[MediaRef, ...] | None, draw: random.Random) -> tuple[Message, ...]:
    """Return the prompt: the word or the medium, and what is wanted of it."""
    wanted = direction.split("-to-")[1]
    if media is None:
        return (Message(role="user", parts=(TextPart(text=f"{name}. {WANTED[wanted]}"),)),)
    return (Message(role="user", parts=(MediaPart(media=draw.choice(media)), TextPart(text=WANTED[wanted]))),)


WANTED = {"image": "Draw it.", "audio": "Say it.", "text": "Name it."}


def answer(name: str, direction: str, media: dict[str, Media], draw: random.Random) -> tuple[TextPart | MediaPart, ...]:
    wanted = direction.split("-to-")[1]
    return (TextPart(text=name),) if wanted == "text" else (MediaPart(media=draw.choice(media[name].answers[wanted])),)


def preferences(media: dict[str, Media], split: str, per_thing: int) -> Iterator[Record]:
    """Yield pairs: the same kind of answer, of the right thing and of another."""
    for name in THINGS:
        if (name in HELD_OUT_THINGS) != (split == "test"):
            continue
        for direction in DIRECTIONS:
            draw = random.Random(f"{split} {name} {direction}")
            source = direction.split("-to-")[0]
            prompts = media[name].asked if split == "train" else media[name].held_out
            for number in range(per_thing):
                others = [other for other in THINGS if other != name and (other in HELD_OUT_THINGS) == (split == "test")]
                pair = [answer(name, direction, media, draw), answer(draw.choice(others), direction, media, draw)]
                best = draw.randint(0, 1)
                yield Record(
                    id=f"{direction}-{name}-{number}",
                    prompt=asked(name, direction, prompts.get(source), draw),
                    candidates=tuple(Candidate(parts=parts) for parts in (pair if best == 0 else pair[::-1])),
                    feedback=(Comparison(ranking=((best,), (1 - best,)), aspect="right thing", annotator="rule:thing"),),
                    group=direction,
                    tags=(direction,),
                    conditions={"answer": name, "wanted": direction.split("-to-")[1]},
                    provenance=SOURCE,
                    licence=LICENCE,
                )


def questions(media: dict[str, Media]) -> Iterator[Record]:
    """Yield what the model is measured by: every thing in every direction, three times, by media that were held out."""
    for direction in DIRECTIONS:
        for name in THINGS:
            draw = random.Random(f"question {name} {direction}")
            held_out = media[name].held_out.get(direction.split("-to-")[0])
            for number in range(3):
                prompt = asked(name, direction, (held_out[number],) if held_out is not None else None, draw)
                yield Record(
                    id=f"{direction}-{name}-{number}",
                    prompt=prompt,
                    candidates=(Candidate(parts=answer(name, direction, media, draw)),),
                    group=direction,
                    tags=(direction, "held-out" if name in HELD_OUT_THINGS else "preferred"),
                    conditions={"answer": name, "wanted": direction.split("-to-")[1]},
                    provenance=SOURCE,
                    licence=LICENCE,
                )


def card(counts: dict[str, int], target: Path) -> str:
    files = "\n".join(
        f"| `{name}` | {count:,} | `{hashlib.sha256((target / name).read_bytes()).hexdigest()}` |"
        for name, count in counts.items()
    )
    media = sorted((target / "media").iterdir())
    size = f"{sum(path.stat().st_size for path in media) / 1e6:.1f} MB"
    things, voices = ", ".join(sorted(HELD_OUT_THINGS)), ", ".join(HELD_OUT_VOICES)
    wanted = ", ".join(f"`{one}`" for one in WANTED.values())
    return f"""# emoji-any

{len(THINGS)} things, each as a word, a picture and a spoken word, and preferences over the six directions between them:
{", ".join(DIRECTIONS)}. Small enough to align an any-to-any model on two CPU cores.

**The labels are constructed, not human** (annotator `rule:thing`): the better of two answers is of the thing that the prompt is
of, the worse one of another thing.

| file | records | sha256 |
|---|---|---|
{files}

`media/` holds {len(media):,} files, {size}: PNG of {SIDE} x {SIDE} pixels, FLAC of 8 kHz.

- `train.jsonl`, `test.jsonl`: pairs. `tags` and `group` name the direction; the conditions are `answer`, the thing, and `wanted`,
  the kind of answer. {len(HELD_OUT_THINGS)} things are in `test` alone: {things}.
  Held out means from preferences: `zoo:tiny-any` learnt all of them.
- `questions.jsonl`: every thing in every direction, three times, with one right answer: what `zoo:tiny-any` is measured by.
  Spoken prompts are of voices ({voices}) and pictured ones of placements that neither the
  model nor its preferences have seen.
- Prompts end with what is wanted: {wanted} Answers are drawn in the middle of the
  picture, in one of two styles, or spoken by {" or ".join(ANSWERING)}.

## Sources, licences, attribution
- Pictures: `datasets/emoji-styles`, made smaller and moved. Noto Emoji, copyright Google, Apache-2.0; Twemoji, copyright 2020
  Twitter, Inc and other contributors, CC-BY 4.0 (<https://creativecommons.org/licenses/by/4.0/>).
- Words: emojibase, copyright Miles Johnson, MIT.
- Clips: spoken by Debian's espeak-ng (a GPL program, whose output is not under its licence).
- Records (the selection and the labels): Apache-2.0, as the rest of this repository.

Rebuild: `python3 tools/dev.py data emoji-any` (wants Debian's espeak-ng)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET)
    target = parser.parse_args().target
    shutil.rmtree(target / "media", ignore_errors=True)
    media = stored(MediaStore(target))
    counts = {
        "train.jsonl": write_jsonl(target / "train.jsonl", preferences(media, "train", 8)),
        "test.jsonl": write_jsonl(target / "test.jsonl", preferences(media, "test", 2)),
        "questions.jsonl": write_jsonl(target / "questions.jsonl", questions(media)),
    }
    (target / "CARD.md").write_text(card(counts, target), encoding="utf-8")
    print(counts)


if __name__ == "__main__":
    main()
