"""Rewards over stored candidates: their values become ratings, and the order they give becomes a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from polyalign.errors import RecordError, RewardError
from polyalign.records.convert import moved
from polyalign.records.files import open_file, records_of, split_files, splits
from polyalign.records.jsonl import write_jsonl
from polyalign.records.modality import decoded
from polyalign.records.samples import MediaSource, Prompt
from polyalign.records.schema import Comparison, MediaPart, Rating, Record
from polyalign.records.store import MediaStore
from polyalign.rewards.base import Judged, Reward, checked

JUDGED_AT_ONCE = 256  # records
LARGEST_GROUP = 4096  # records of one group in a row that are judged together
Ranking = Literal["all", "extremes"]


@dataclass
class Rated:
    """What was rated: values by reward, ``[records][candidates]``, and for each strict preference that the data held before
    1 where the reward agrees, 0 where not, 0.5 for equal values. ``comparisons``: how many were written."""

    values: dict[str, list[list[float]]]
    agreement: dict[str, list[float]] = field(default_factory=dict)
    comparisons: int = 0


def rate(
    source: Path,
    target: Path,
    rewards: Mapping[str, Reward],
    *,
    split: str | None = None,
    rank: Ranking | None = None,
    margin: float = 0.0,
    parts: bool = False,
) -> Rated:
    """Write the records of one split to the JSON Lines file ``target``, each candidate rated by each reward.

    A rating's aspect is the reward's name, its annotator ``reward:NAME``; what an earlier run wrote under that annotator is
    replaced. ``parts`` adds the parts of a combined reward as ``NAME/PART``. The scale is [0, 1], or from the least to the
    greatest value where values leave it. ``rank`` also writes one comparison per prompt: of all candidates from best to
    worst, or of the best and the worst only (``extremes``). Values at most ``margin`` below a tier's first are tied with it.
    """
    if target.suffix != ".jsonl":
        raise RecordError(f"{target} does not end in .jsonl; name a JSON Lines file")
    if rank is not None and len(rewards) != 1:
        raise RewardError(f"ranking takes one reward, found {', '.join(rewards)}; put them into one, such as weighted")
    held = stored(source, split, target)
    columns: dict[str, list[list[float]]] = {}
    for chunk in _chunks(held):
        for name, rows in _judged(chunk, rewards, parts).items():
            columns.setdefault(name, []).extend(rows)
    scales = {name: _scale([value for row in rows for value in row]) for name, rows in columns.items()}
    result = Rated(columns, {name: _agreement([record for record, _ in held], columns[name], name) for name in rewards})
    store = MediaStore(target.parent)

    def written() -> Iterator[Record]:
        for number, (record, media) in enumerate(held):
            feedback: list[Any] = [one for one in record.feedback if one.annotator not in {f"reward:{name}" for name in columns}]
            for name, rows in columns.items():
                said = {"aspect": name, "annotator": f"reward:{name}"}
                feedback += [
                    Rating(candidate=at, value=value, scale=scales[name], **said) for at, value in enumerate(rows[number])
                ]
                if rank is not None and name in rewards:
                    rankings = list(_rankings(record, rows[number], rank, margin))
                    feedback += [Comparison(ranking=tiers, **said) for tiers in rankings]
                    result.comparisons += len(rankings)
            yield moved(Record.model_validate(record.model_copy(update={"feedback": tuple(feedback)}).model_dump()), media, store)

    write_jsonl(target, written())
    return result


def candidates_of(record: Record, media: MediaSource) -> list[Judged]:
    """Return each candidate as a reward sees it: text, a decoded medium, or a tuple where a response mixes several parts."""
    items = []
    for number, candidate in enumerate(record.candidates):
        outputs = tuple(decoded(part.media, media) if isinstance(part, MediaPart) else part.text for part in candidate.parts)
        text = all(isinstance(output, str) for output in outputs)
        output = "".join(outputs) if text else outputs[0] if len(outputs) == 1 else outputs
        prompt = Prompt.of(record.prompt_of(number), media, record.conditions)
        made_of = frozenset(part.media.modality if isinstance(part, MediaPart) else "text" for part in candidate.parts)
        items.append(Judged(prompt, output, media, record.conditions, candidate.conditions, record.group, made_of))
    return items


def stored(source: Path, split: str | None, target: Path | None = None) -> list[tuple[Record, MediaSource]]:
    """Return the records of one split, each with what opens its media. Raises `RecordError` where it is not clear which split,
    where there are none, and where ``target`` would be written over them."""
    found = splits(source)
    if split is None and len(found) > 1:
        raise RecordError(f"{source} has the splits {', '.join(found)}; choose one with --split")
    paths = split_files(source, split or next(iter(found)))
    if target is not None and target.resolve() in {path.resolve() for path in paths}:
        raise RecordError(f"{target} would be written over itself; name another target")
    held: list[tuple[Record, MediaSource]] = [
        (record, file.media) for file in map(open_file, paths) for record in records_of(file)
    ]
    if not held:
        raise RecordError(f"{source} holds no records")
    return held


def _chunks(held: Sequence[tuple[Record, MediaSource]]) -> Iterator[Sequence[tuple[Record, MediaSource]]]:
    """Cut the records into chunks to be judged at once; records of one group that follow each other stay together."""
    start = 0
    while start < len(held):
        end = min(start + JUDGED_AT_ONCE, len(held))
        last = held[end - 1][0].group
        while last is not None and end < len(held) and held[end][0].group == last and end - start < LARGEST_GROUP:
            end += 1
        yield held[start:end]
        start = end


def _judged(
    chunk: Sequence[tuple[Record, MediaSource]], rewards: Mapping[str, Reward], parts: bool
) -> dict[str, list[list[float]]]:
    """Return values ``[records][candidates]`` by name of reward, and of its parts."""
    items = [item for record, media in chunk for item in candidates_of(record, media)]
    found: dict[str, list[list[float]]] = {}
    for name, reward in rewards.items():
        scored = checked(name, reward.evaluate(items), len(items))
        named = {name: scored.values} | ({f"{name}/{part}": values for part, values in scored.aspects.items()} if parts else {})
        for label, values in named.items():
            rest = iter(values)
            found[label] = [[float(next(rest)) for _ in record.candidates] for record, _ in chunk]
    return found


def _scale(values: Sequence[float]) -> tuple[float, float]:
    return min(0.0, *values), max(1.0, *values)


def _rankings(record: Record, values: Sequence[float], rank: Ranking, margin: float) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield the tiers of each set of candidates that answer one prompt, where there is more than one."""
    prompts: dict[Any, list[int]] = {}
    for number in range(len(record.candidates)):
        prompts.setdefault(record.prompt_of(number), []).append(number)
    for members in prompts.values():
        ordered = sorted(members, key=lambda number: -values[number])
        if rank == "extremes" and len(ordered) > 2:
            ordered = [ordered[0], ordered[-1]]
        tiers: list[list[int]] = []
        for number in ordered:
            if tiers and values[tiers[-1][0]] - values[number] <= margin:
                tiers[-1].append(number)
            else:
                tiers.append([number])
        if len(ordered) > 1:
            yield tuple(tuple(sorted(tier)) for tier in tiers)


def _agreement(records: Sequence[Record], values: Sequence[Sequence[float]], name: str) -> list[float]:
    """Return, for each strict preference of the data (this reward's own left out), whether the values agree."""
    points = []
    for record, row in zip(records, values, strict=True):
        for said in record.feedback:
            if isinstance(said, Comparison) and said.annotator != f"reward:{name}":
                for upper, lower in combinations(said.ranking, 2):
                    points += [_point(row[better] - row[worse]) for better in upper for worse in lower]
    return points


def _point(difference: float) -> float:
    return 0.5 if difference == 0 else float(math.copysign(1, difference) > 0)
