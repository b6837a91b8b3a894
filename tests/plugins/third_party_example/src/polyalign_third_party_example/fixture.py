"""What polyalign's cells test trains the walker on."""

from __future__ import annotations

from pathlib import Path

from polyalign.errors import MediaError
from polyalign.policies.fixture import PolicyFixture
from polyalign.records.schema import Candidate, Comparison, MediaPart, MediaRef, Message, Record
from polyalign.records.store import reference_to
from polyalign_third_party_example.config import WalkerConfig
from polyalign_third_party_example.modality import MIME, Walk
from polyalign_third_party_example.policy import Walker


class WalksInMemory:
    """Media without a folder."""

    def __init__(self) -> None:
        self.walks: dict[str, bytes] = {}

    def add(self, numbers: list[float]) -> tuple[MediaPart, ...]:
        data = Walk().encode(numbers, MIME)
        reference = reference_to(data, "walk", MIME)
        self.walks[reference.sha256] = data
        return (MediaPart(media=reference),)

    def read(self, ref: MediaRef) -> bytes:
        return self.walks[ref.sha256]

    def path(self, ref: MediaRef) -> Path:
        raise MediaError("these walks are in memory only; use read()")


def _ask(word: str) -> tuple[Message, ...]:
    return (Message(role="user", parts=f"walk {word}"),)  # type: ignore[arg-type]


def fixture() -> PolicyFixture:
    """Return a small walker, four comparisons, and two grids of two prompts x two walks."""
    media = WalksInMemory()
    records = []
    for number in range(4):
        word, sign = (("up", 1.0), ("down", -1.0))[number % 2]
        good, bad = ([s * (0.3 + 0.1 * number) * (t + 1) for t in range(4)] for s in (sign, -sign))
        candidates = (Candidate(parts=media.add(good)), Candidate(parts=media.add(bad)))
        comparison = Comparison(ranking=((0,), (1,)))
        records.append(Record(id=f"pair-{number}", prompt=_ask(word), candidates=candidates, feedback=(comparison,)))
    for number in range(2):
        rising, falling = ([sign * (0.2 + 0.2 * number) * (t + 1) for t in range(4)] for sign in (1.0, -1.0))
        cells = [("up", rising), ("up", falling), ("down", rising), ("down", falling)]
        candidates = tuple(Candidate(parts=media.add(walk), prompt=_ask(word)) for word, walk in cells)
        comparisons = (Comparison(ranking=((0,), (1,))), Comparison(ranking=((3,), (2,))))
        records.append(Record(id=f"grid-{number}", candidates=candidates, feedback=comparisons, tags=("grid",)))
    return PolicyFixture(lambda: Walker(WalkerConfig(hidden=8)), records, media, learning_rate=1e-2)
