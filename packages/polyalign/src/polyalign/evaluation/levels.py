"""Alignment levels: how well text and medium of each candidate fit together, as the bucket of its rank among all of them.

Source: AlignGPT (arXiv 2405.14129), section 3.1: pairs are ranked by CLIP similarity and the ranking is cut into N equal
buckets, 0 the worst.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from polyalign.encoders import Encoder
from polyalign.errors import RecordError
from polyalign.records.convert import moved
from polyalign.records.files import RecordFile, open_file, records_of, split_files
from polyalign.records.jsonl import write_jsonl
from polyalign.records.modality import decoded
from polyalign.records.schema import MediaPart, MediaRef, Record, text_of
from polyalign.records.store import MediaStore

LEVEL, SIMILARITY = "level", "similarity"
ENCODED_AT_ONCE = 256


def rank_buckets(scores: Sequence[float], buckets: int) -> list[int]:
    """Return the bucket of each score, 0 to ``buckets - 1`` from low to high; sizes differ by one at most. The earlier of two
    equal scores counts as the lower one."""
    if buckets < 1:
        raise ValueError(f"buckets is {buckets}, expected at least 1")
    found = [0] * len(scores)
    for place, index in enumerate(sorted(range(len(scores)), key=lambda index: (scores[index], index))):
        found[index] = place * buckets // len(scores)
    return found


def add_levels(source: Path, split: str, target: Path, encoder: Encoder, levels: int) -> dict[int, int]:
    """Write one split of ``source`` to the JSON Lines file ``target`` with conditions "level" and "similarity" on every
    candidate that pairs one medium with text; return how many candidates each level got.

    The text is what stands on the medium's other side: the response to a prompt with a medium, or the prompt of a response
    that is one. Other candidates stay as they are. Raises `RecordError` if no candidate is such a pair.
    """
    files = [open_file(path) for path in split_files(source, split)]
    pairs: list[tuple[RecordFile, MediaRef, str]] = []
    for file in files:
        for record in records_of(file):
            pairs += [(file, *pair) for pair in pairs_of(record) if pair]
    if not pairs:
        raise RecordError(f"{source} (split {split!r}) has no candidate that pairs one medium with text")
    scores: list[float] = []
    for start in range(0, len(pairs), ENCODED_AT_ONCE):
        chunk = pairs[start : start + ENCODED_AT_ONCE]
        media = encoder.encode_media([decoded(ref, file.media) for file, ref, _ in chunk])
        scores += cosine_similarity(media, encoder.encode_text([text for *_, text in chunk]), dim=-1).double().tolist()
    if not torch.isfinite(torch.tensor(scores)).all():
        raise RecordError(f"encoder {encoder.name!r} gave similarities that are not finite")
    found = rank_buckets(scores, levels)
    marks = iter(zip(found, scores, strict=True))
    store = MediaStore(target.parent)
    write_jsonl(target, (moved(_marked(record, marks), file.media, store) for file in files for record in records_of(file)))
    return {level: found.count(level) for level in range(levels)}


def pairs_of(record: Record) -> list[tuple[MediaRef, str] | None]:
    """Return the medium and the text of each candidate, or None where it is not one of each."""
    found: list[tuple[MediaRef, str] | None] = []
    for number, candidate in enumerate(record.candidates):
        prompt = tuple(part for message in record.prompt_of(number) for part in message.parts)
        asked, given = ([part.media for part in parts if isinstance(part, MediaPart)] for parts in (prompt, candidate.parts))
        text = text_of(candidate.parts if asked else prompt).strip()
        found.append(((asked or given)[0], text) if len(asked) + len(given) == 1 and text else None)
    return found


def _marked(record: Record, marks: Iterator[tuple[int, float]]) -> Record:
    candidates = []
    for candidate, pair in zip(record.candidates, pairs_of(record), strict=True):
        if pair:
            level, score = next(marks)
            more = {LEVEL: level, SIMILARITY: round(score, 6)}
            candidate = candidate.model_copy(update={"conditions": {**candidate.conditions, **more}})
        candidates.append(candidate)
    return record.model_copy(update={"candidates": tuple(candidates)})
