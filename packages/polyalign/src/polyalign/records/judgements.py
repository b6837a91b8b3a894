"""What a record's feedback says about its candidates, in the terms of samples and edges. The views are built from this."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict

from polyalign.records.samples import Edge, Labelled, MediaSource, Rated, Sample
from polyalign.records.schema import Comparison, MediaPart, Rating, Record, Segment, TextPart

Parts = tuple[TextPart | MediaPart, ...]


class Carried(TypedDict):
    ratings: tuple[Rated, ...]
    segments: tuple[Labelled, ...]


def same_content(first: Parts, second: Parts) -> bool:
    """Return whether two responses are equal: texts by text, media by hash, wherever their files lie."""
    return content_of(first) == content_of(second)


def content_of(parts: Parts) -> tuple[str, ...]:
    """Return what a response consists of, without where its media lie. Equal content, equal value."""
    return tuple(f"text:{part.text}" if isinstance(part, TextPart) else f"media:{part.media.sha256}" for part in parts)


def sample_of(record: Record, candidate: int, media: MediaSource | None) -> Sample:
    """Return candidate number ``candidate`` with the prompt that it answers."""
    chosen = record.candidates[candidate]
    return Sample(
        id=f"{record.id}#{candidate}",
        prompt=record.prompt_of(candidate),
        response=chosen.parts,
        draw_key=record.id,
        media=media,
        conditions={**record.conditions, **chosen.conditions},
    )


def strict_pairs(comparison: Comparison) -> Iterator[tuple[int, int]]:
    """Yield (better, worse) candidates: every pair from two different tiers, best tiers first."""
    for rank, tier in enumerate(comparison.ranking):
        for worse_tier in comparison.ranking[rank + 1 :]:
            yield from ((better, worse) for better in tier for worse in worse_tier)


def contrast(record: Record, first: int, second: int) -> Literal["response", "prompt"] | None:
    """Return what differs between two candidates, or None if they share neither prompt nor response."""
    if record.prompt_of(first) == record.prompt_of(second):
        return "response"
    if same_content(record.candidates[first].parts, record.candidates[second].parts):
        return "prompt"
    return None


def edge_of(comparison: Comparison, record: Record, members: Sequence[int], better: int, worse: int, ranking: int) -> Edge:
    """Return the edge of one strict pair; ``members`` lists the candidate of each sample. Strength becomes the weight."""
    return Edge(
        better=members.index(better),
        worse=members.index(worse),
        weight=weight_of(comparison),
        aspect=comparison.aspect,
        annotator=comparison.annotator,
        ranking=ranking,
        contrast=contrast(record, better, worse) or "response",
    )


def weight_of(comparison: Comparison) -> float:
    """Return the weight of everything that the comparison says: its strength, or 1."""
    return 1.0 if comparison.strength is None else comparison.strength


def carried(record: Record, members: Sequence[int | None]) -> Carried:
    """Return the ratings and segments of the candidates in an example; ``members`` gives each sample's candidate, if any."""
    position = {candidate: at for at, candidate in enumerate(members) if candidate is not None}
    ratings = tuple(
        Rated(position[feedback.candidate], unit_value(feedback), feedback.aspect, feedback.annotator)
        for feedback in record.feedback
        if isinstance(feedback, Rating) and feedback.candidate in position
    )
    segments = tuple(
        Labelled(position[feedback.candidate], feedback.start, feedback.end, feedback.unit, feedback.value)
        for feedback in record.feedback
        if isinstance(feedback, Segment) and feedback.candidate in position
    )
    return Carried(ratings=ratings, segments=segments)


def unit_value(rating: Rating) -> float:
    """Return the rating's value on [0, 1]: 0 at the low end of its scale, 1 at the high end."""
    low, high = rating.scale
    return (rating.value - low) / (high - low)


def desirability(record: Record) -> tuple[int, ...]:
    """Return +1, -1 or 0 (unknown) for each candidate: by its place in comparisons, or else by its mean rating."""
    votes = [0] * len(record.candidates)
    placed: set[int] = set()
    rated: dict[int, list[float]] = {}
    for feedback in record.feedback:
        if isinstance(feedback, Comparison) and len(feedback.ranking) > 1:
            for vote, tier in ((1, feedback.ranking[0]), (-1, feedback.ranking[-1])):
                for candidate in tier:
                    votes[candidate] += vote
                    placed.add(candidate)
        elif isinstance(feedback, Rating):
            rated.setdefault(feedback.candidate, []).append(unit_value(feedback))
    for candidate, values in rated.items():
        if candidate not in placed:
            votes[candidate] = _sign(sum(values) / len(values) - 0.5)
    return tuple(_sign(vote) for vote in votes)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
