"""The grid view: instructions x responses, for the cross-validation alignment of InstructEngine (section 1.3 of the notes).

Two instructions x1, x2 with their own responses y1, y2 make four scored cells. Rows compare responses under one
instruction (y1 over y2 under x1, y2 over y1 under x2); columns compare instructions for one response.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from polyalign.records.judgements import carried, content_of, sample_of, strict_pairs
from polyalign.records.samples import Edge, Example, MediaSource, Sample
from polyalign.records.schema import Comparison, Message, Record

Cells = Mapping[tuple[int, int], int]  # (prompt number, response number) -> candidate


def grids(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per two prompts of the record whose own responses differ.

    Samples, in order: (x1, y1), (x1, y2), (x2, y1), (x2, y2); cells that the record does not list are composed. Rankings
    0 and 1 are the rows, 2 and 3 the columns (contrast "prompt"). A prompt's own response is its only candidate, or the
    one that comparisons prefer. Comparisons between two cells decide their edge (one per comparison; a tie gives none);
    without any, the own response or instruction is better.
    """
    prompts, responses, cells = _table(record)
    own = {prompt: best for prompt in range(len(prompts)) if (best := _own(record, prompt, cells)) is not None}
    examples = []
    for first, second in combinations(own, 2):
        left, right = own[first], own[second]
        if left == right:
            continue
        keys = [(first, left), (first, right), (second, left), (second, right)]
        members = [cells.get(key) for key in keys]
        samples = tuple(
            sample_of(record, member, media)
            if member is not None
            else _composed(record, prompts[prompt], response, responses[response], prompt, media)
            for member, (prompt, response) in zip(members, keys, strict=True)
        )
        lines = [(0, 1, "response"), (3, 2, "response"), (0, 2, "prompt"), (3, 1, "prompt")]
        edges: list[Edge] = []
        for ranking, (better, worse, contrast) in enumerate(lines):
            default = Edge(better, worse, ranking=ranking, contrast=contrast)  # type: ignore[arg-type]
            edges += _decided(record, members[better], members[worse], default)
        examples.append(Example(record.id, samples, edges=tuple(edges), **carried(record, members)))
    return examples


def _table(record: Record) -> tuple[list[tuple[Message, ...]], list[int], Cells]:
    """Return the distinct prompts, one candidate for each distinct response, and the candidate of each listed cell."""
    prompts: list[tuple[Message, ...]] = []
    contents: list[tuple[str, ...]] = []
    responses: list[int] = []
    cells: dict[tuple[int, int], int] = {}
    for number, candidate in enumerate(record.candidates):
        prompt, content = record.prompt_of(number), content_of(candidate.parts)
        if prompt not in prompts:
            prompts.append(prompt)
        if content not in contents:
            contents.append(content)
            responses.append(number)
        cells.setdefault((prompts.index(prompt), contents.index(content)), number)
    return prompts, responses, cells


def _own(record: Record, prompt: int, cells: Cells) -> int | None:
    """Return the response that belongs to a prompt: its only one, or the one with most wins over losses; None if undecided."""
    listed = {candidate: response for (of, response), candidate in cells.items() if of == prompt}
    if len(listed) == 1:
        return next(iter(listed.values()))
    wins = dict.fromkeys(listed, 0)
    for comparison in _comparisons(record):
        for better, worse in strict_pairs(comparison):
            if better in wins and worse in wins:
                wins[better] += 1
                wins[worse] -= 1
    best = max(wins.values())
    leaders = [candidate for candidate, balance in wins.items() if balance == best]
    return listed[leaders[0]] if len(leaders) == 1 else None


def _composed(
    record: Record, prompt: tuple[Message, ...], response: int, made_by: int, prompt_number: int, media: MediaSource | None
) -> Sample:
    """Return the sample of a cell that the record does not list: the response (of candidate ``made_by``) under ``prompt``."""
    candidate = record.candidates[made_by]
    return Sample(
        id=f"{record.id}#{prompt_number}x{response}",
        prompt=prompt,
        response=candidate.parts,
        draw_key=record.id,
        media=media,
        conditions={**record.conditions, **candidate.conditions},
    )


def _decided(record: Record, better: int | None, worse: int | None, default: Edge) -> list[Edge]:
    """Return the edges between two cells: as the comparisons that name both say, or the default if none does."""
    listed = better is not None and worse is not None
    verdicts = [comparison for comparison in _comparisons(record) if listed and _names(comparison, better, worse)]
    if not verdicts:
        return [default]
    edges = []
    for comparison in verdicts:
        order = list(strict_pairs(comparison))
        ends = {(better, worse): (default.better, default.worse), (worse, better): (default.worse, default.better)}
        edges += [
            Edge(
                *ends[pair],
                weight=1.0 if comparison.strength is None else comparison.strength,
                aspect=comparison.aspect,
                annotator=comparison.annotator,
                ranking=default.ranking,
                contrast=default.contrast,
            )
            for pair in order
            if pair in ends
        ]
    return edges


def _names(comparison: Comparison, *candidates: int | None) -> bool:
    named = {candidate for tier in comparison.ranking for candidate in tier} | set(comparison.incomparable)
    return named.issuperset(candidates)


def _comparisons(record: Record) -> Iterator[Comparison]:
    return (feedback for feedback in record.feedback if isinstance(feedback, Comparison))
