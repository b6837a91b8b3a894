"""Writes the records and media of this folder. Run: ``python -m polyalign_third_party_example.data.make``."""

from __future__ import annotations

from pathlib import Path

from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record
from polyalign.records.store import MediaStore
from polyalign_third_party_example.modality import MIME, Walk

PLACES = ("hill", "tower", "ladder", "stairs", "river", "tree", "valley", "street")


def make(root: Path) -> None:
    """Write ``train.jsonl`` (12 records), ``test.jsonl`` (4), and their media."""
    store = MediaStore(root)

    def walk(slope: float, bend: float) -> tuple[MediaPart, ...]:
        numbers = [slope * (step + 1) + bend * (step % 2) for step in range(6)]
        return (MediaPart(media=store.add(Walk().encode(numbers, MIME), "walk", MIME)),)

    records = []
    for number, place in enumerate(PLACES):
        slope, bend = 0.5 + 0.1 * (number % 3), 0.1 * (number % 2)
        for word, sign in (("up", 1.0), ("down", -1.0)):
            prompt = Message(role="user", parts=f"walk {word} the {place}")  # type: ignore[arg-type]
            candidates = (Candidate(parts=walk(sign * slope, bend)), Candidate(parts=walk(-sign * slope, bend)))
            comparison = Comparison(ranking=((0,), (1,)))
            records.append(Record(id=f"{place}-{word}", prompt=(prompt,), candidates=candidates, feedback=(comparison,)))
    for name, part in (("train", records[:12]), ("test", records[12:])):
        write_jsonl(root / f"{name}.jsonl", part)


if __name__ == "__main__":
    make(Path(__file__).parent)
