"""Build `datasets/heard-tunes`: tunes of a few notes, what each is, and preferences for descriptions that are right.

    python3 tools/dev.py data heard-tunes        # seconds

Tunes are those of `tiny_musicgen_tunes`, made by a program. The better description is right, the worse one says flute for reed or
the other way round. The same versions of numpy and libsndfile write the same bytes.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tiny_musicgen_tunes import INSTRUMENTS, RATE, Ask, all_asks, tune

from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Provenance, Record, TextPart
from polyalign.records.store import MediaStore
from polyalign_audio.modality import AudioModality, Clip

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "datasets/heard-tunes"
SPLITS = {"train": 12, "test": 8}  # tunes of each of the 16 kinds
QUESTION, MIME = "What is played ?", "audio/flac"
ANNOTATOR, LICENCE = "rule:tune-settings", "CC0-1.0"


def described(ask: Ask, rightly: bool = True) -> str:
    """Return what is said of a tune: all but whether it rises or falls; not rightly: on the other instrument."""
    assert ask.instrument is not None
    (other,) = set(INSTRUMENTS) - {ask.instrument}
    return Ask(None, ask.instrument if rightly else other, ask.register, ask.pace).prompt


def record_of(name: str, ask: Ask, samples: np.ndarray, store: MediaStore, answers: Sequence[str]) -> Record:
    """Return a record of one tune; with two answers the first is preferred."""
    clip = store.add(AudioModality().encode(Clip(samples, RATE), MIME), "audio", MIME)
    prompt = (Message(role="user", parts=(MediaPart(media=clip), TextPart(text=QUESTION))),)
    preferred = (Comparison(ranking=((0,), (1,)), annotator=ANNOTATOR),) if len(answers) > 1 else ()
    return Record(
        id=name,
        prompt=prompt,
        candidates=tuple(Candidate(parts=(TextPart(text=answer),)) for answer in answers),
        feedback=preferred,
        conditions={"answer": described(ask)},
        provenance=Provenance(source="heard-tunes"),
        licence=LICENCE,
    )


def pairs(count: int, store: MediaStore, draw: np.random.Generator) -> Iterator[Record]:
    for number in range(count):
        for ask in all_asks():
            name = f"{ask.prompt}/{number}".replace(" ", "-")
            yield record_of(name, ask, tune(ask, draw), store, (described(ask), described(ask, rightly=False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET)
    target = parser.parse_args().target
    for path in [target / "media", *(target / f"{split}.jsonl" for split in SPLITS)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    store = MediaStore(target)
    for seed, (split, count) in enumerate(SPLITS.items()):
        write_jsonl(target / f"{split}.jsonl", list(pairs(count, store, np.random.default_rng(seed))))
    print(f"{16 * sum(SPLITS.values())} records in {target}")


if __name__ == "__main__":
    main()
