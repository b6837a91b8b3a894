"""Views: what training sees of a record. ``VIEWS[name](record, media)`` returns the examples that the record gives.

All views are pure functions of the record: the same record gives the same examples in the same order. All samples made
from one record share its id as draw key, so chosen, rejected and reference see the same noise. Ratings (rescaled to
[0, 1]) and segments of the candidates in an example come along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from polyalign.records.grids import grids
from polyalign.records.judgements import carried, contrast, desirability, edge_of, sample_of, strict_pairs, weight_of
from polyalign.records.samples import Edge, Example, MediaSource, Ranked, Sample
from polyalign.records.schema import Comparison, Rating, Record, Refinement, Segment

CONTROL = "control"  # the condition that says which kind of behaviour a response shows
View = Callable[[Record, MediaSource | None], list[Example]]


def pairs(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per strict pair of every comparison: samples (better, worse) and one edge.

    Ties and incomparable candidates give none, nor do candidates that share neither prompt nor response.
    """
    examples = []
    for comparison in _comparisons(record):
        for better, worse in strict_pairs(comparison):
            if contrast(record, better, worse) is None:
                continue
            members = (better, worse)
            samples = tuple(sample_of(record, candidate, media) for candidate in members)
            edge = edge_of(comparison, record, members, better, worse, ranking=0)
            examples.append(Example(record.id, samples, edges=(edge,), **carried(record, members)))
    return examples


def rankings(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per comparison: its ranked candidates in order of index, with their ranks and every strict edge.

    A comparison whose candidates share neither one prompt nor one response gives none: its order has no model behind it.
    """
    examples = []
    for comparison in _comparisons(record):
        members = tuple(sorted(candidate for tier in comparison.ranking for candidate in tier))
        if len(members) < 2 or not _one_contrast(record, members):
            continue
        rank_of = {candidate: rank for rank, tier in enumerate(comparison.ranking) for candidate in tier}
        weight, across = weight_of(comparison), contrast(record, *members[:2]) or "response"
        examples.append(
            Example(
                record.id,
                tuple(sample_of(record, candidate, media) for candidate in members),
                edges=tuple(edge_of(comparison, record, members, better, worse, 0) for better, worse in strict_pairs(comparison)),
                rankings=tuple(Ranked(at, rank_of[member], 0, weight, across) for at, member in enumerate(members)),
                **carried(record, members),
            )
        )
    return examples


def unpaired(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per response that is labelled: +1 desirable or -1 undesirable.

    A comparison labels its first tier +1 and its last -1 (all votes are summed; an even vote labels nothing). A response
    in no such tier is labelled by its mean rating: above the middle of the scale +1, below -1.
    """
    examples = []
    for candidate, label in enumerate(desirability(record)):
        if label:
            sample = sample_of(record, candidate, media)
            examples.append(Example(record.id, (sample,), labels=(label,), **carried(record, (candidate,))))
    return examples


def sft(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per response worth imitating.

    Per prompt: what refinements ended in; else the responses that are desirable in the sense of `unpaired`; else, if
    nothing was judged, the only response. Several unjudged responses to one prompt give none. What the policy answered itself
    (producer "self") counts only where it was judged or refined.
    """
    return [
        Example(record.id, (sample_of(record, candidate, media),), **carried(record, (candidate,)))
        for candidate in _worth_imitating(record)
    ]


def rated(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per response that has a rating or a labelled segment, good or bad, in order."""
    found = sorted({feedback.candidate for feedback in record.feedback if isinstance(feedback, Rating | Segment)})
    return [Example(record.id, (sample_of(record, candidate, media),), **carried(record, (candidate,))) for candidate in found]


def self_samples(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per undesirable response (in the sense of `unpaired`): it first, then what the policy itself answered to
    the same prompt, in the role "self_sample", with an edge from each of these over it.

    The policy's answers are the candidates whose producer is "self"; those that are undesirable themselves stand first in
    examples of their own. A response whose prompt the policy has not answered gives none.
    """
    labels = desirability(record)
    own = [candidate for candidate, made in enumerate(record.candidates) if made.is_self_sample and labels[candidate] >= 0]
    examples = []
    for negative in (candidate for candidate, label in enumerate(labels) if label < 0):
        members = (negative, *(one for one in own if record.prompt_of(one) == record.prompt_of(negative)))
        if len(members) > 1:
            first, *others = (sample_of(record, candidate, media) for candidate in members)
            examples.append(
                Example(
                    record.id,
                    (first, *(replace(sample, role="self_sample") for sample in others)),
                    edges=tuple(Edge(at, 0) for at in range(1, len(members))),
                    labels=(-1, *[0] * len(others)),
                    **carried(record, members),
                )
            )
    return examples


def prompts(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per distinct prompt: a single sample with nothing in its response, for the policy to answer."""
    first: dict[object, int] = {}
    for candidate in range(len(record.candidates)):
        first.setdefault(record.prompt_of(candidate), candidate)
    samples = [sample_of(record, candidate, media) for candidate in first.values()]
    return [Example(record.id, (replace(sample, response=()),)) for sample in samples]


def controlled(record: Record, media: MediaSource | None = None) -> list[Example]:
    """Return one example per response whose kind of behaviour is known, with that kind as its condition "control": the one the
    record or candidate names, else "good" or "bad" by the label that `unpaired` gives it. All of them are to be imitated."""
    examples = []
    for candidate, label in enumerate(desirability(record)):
        sample = sample_of(record, candidate, media)
        if CONTROL not in sample.conditions and label:
            sample = replace(sample, conditions={**sample.conditions, CONTROL: "good" if label > 0 else "bad"})
        if CONTROL in sample.conditions:
            examples.append(Example(record.id, (sample,), **carried(record, (candidate,))))
    return examples


VIEWS: dict[str, View] = {
    "pairs": pairs,
    "rankings": rankings,
    "unpaired": unpaired,
    "grids": grids,
    "sft": sft,
    "self_samples": self_samples,
    "controlled": controlled,
    "rated": rated,
    "prompts": prompts,
}


def with_mismatch(example: Example, other: Sample, media: MediaSource | None) -> Example:
    """Return the example with one more sample: its prompt answered by another record's response, role "mismatch", label 0.

    KTO's z0 is estimated from such pairs (Ethayarajh et al. 2024, section 4.1). ``media`` opens the media of both.
    """
    own = example.samples[0]
    mismatch = replace(
        own, id=f"{own.id}~{other.id}", response=other.response, media=media, conditions=dict(other.conditions), role="mismatch"
    )
    labels = example.labels or (0,) * len(example.samples)
    return replace(example, samples=(*example.samples, mismatch), labels=(*labels, 0))


def about(record: Record, aspect: str | None) -> Record:
    """Return the record with only the feedback about one aspect (and refinements, which have none); None keeps all."""
    if aspect is None:
        return record
    kept = tuple(f for f in record.feedback if isinstance(f, Refinement) or f.aspect == aspect)
    return record.model_copy(update={"feedback": kept})


def _comparisons(record: Record) -> Iterator[Comparison]:
    return (feedback for feedback in record.feedback if isinstance(feedback, Comparison))


def _one_contrast(record: Record, members: Sequence[int]) -> bool:
    kinds = {contrast(record, first, second) for first, second in combinations(members, 2)}
    return None not in kinds and len(kinds) == 1


def _worth_imitating(record: Record) -> Iterable[int]:
    by_prompt: dict[object, list[int]] = {}
    for candidate in range(len(record.candidates)):
        by_prompt.setdefault(record.prompt_of(candidate), []).append(candidate)
    refinements = [feedback for feedback in record.feedback if isinstance(feedback, Refinement)]
    revised = {refinement.before for refinement in refinements}
    final = {refinement.after for refinement in refinements} - revised
    labels = desirability(record)
    kept: list[int] = []
    for members in by_prompt.values():
        if refined := [candidate for candidate in members if candidate in final]:
            kept += refined
        elif judged := [candidate for candidate in members if labels[candidate]]:
            kept += [candidate for candidate in judged if labels[candidate] > 0]
        elif len(others := [m for m in members if not record.candidates[m].is_self_sample]) == 1 and others[0] not in revised:
            kept += others
    return sorted(kept)
