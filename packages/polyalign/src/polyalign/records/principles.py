"""SALMON's data: preferences under principles that are written into the prompt, some of them negated.

Sun et al. 2023, arXiv 2310.05910. From comparisons about single principles (a comparison's aspect names the principle, its
strength says how clear the preference is) come records whose prompt carries several principles at once and whose one
comparison the most pronounced of them decides. Light: no torch here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import pvariance

from polyalign.errors import RecordError
from polyalign.randomness import keyed_seed
from polyalign.records.judgements import strict_pairs
from polyalign.records.schema import Comparison, Message, Record, TextPart

ASKED = "Judge the response by these guidelines:"
NEGATION = "The opposite of this guideline: "


@dataclass(frozen=True)
class Principle:
    """A guideline. ``opposite`` is how it reads when it is negated; without one it is said to be the opposite."""

    name: str
    text: str
    opposite: str = ""

    def reads(self, negated: bool) -> str:
        return (self.opposite or NEGATION + self.text) if negated else self.text


def with_principles(
    prompt: Sequence[Message], principles: Sequence[str] = (), negated: Sequence[str] = ()
) -> tuple[Message, ...]:
    """Return the prompt with guidelines at the end of its last message; as it is, if there are none.

    ``negated`` ones are said to be the opposite of their text. The authors put them after the response; before it, all responses
    to a prompt still share one row, and a causal model reads them just as well.
    """
    texts = [*principles, *(NEGATION + text for text in negated)]
    if not texts:
        return tuple(prompt)
    listed = "\n".join(["", "", ASKED, *(f"- {text}" for text in texts)])
    last = prompt[-1]
    return (*prompt[:-1], last.model_copy(update={"parts": (*last.parts, TextPart(text=listed))}))


def dominant(scores: Mapping[str, float], negated: Iterable[str]) -> tuple[str, float]:
    """Return (principle, score) of the largest absolute score, after the scores of ``negated`` principles changed sign."""
    flipped = {name: -score if name in set(negated) else score for name, score in scores.items()}
    name = max(flipped, key=lambda name: abs(flipped[name]))
    return name, flipped[name]


def conditioned(
    records: Sequence[Record], principles: Sequence[Principle], *, seed: int = 0, passes: int = 4, stop: float = 0.2,
    most: int = 8, negate: float = 0.5, flip: float = 0.1,
) -> Iterator[Record]:  # fmt: skip
    """Yield records of two candidates under drawn principles, at most one per pair of candidates, and pass over the data.

    Of the principles that compared a pair, a geometric number (``stop``, at most ``most``) is drawn; each is negated with
    probability ``negate``, its score turned round; scores are divided by the principle's standard deviation over all pairs;
    the largest absolute one decides, and the label is then flipped with probability ``flip``. A pair whose largest score is 0
    gives none. The same seed gives the same records. Raises `RecordError` for a comparison about an unknown principle.

    The prompt is the record's own, so candidates with prompts of their own are left out.
    """
    known = {principle.name: principle for principle in principles}
    judged = [(record, pair, scores) for record in records for pair, scores in _scores(record, known).items()]
    spread = (
        {name: pvariance([scores.get(name, 0.0) for _, _, scores in judged]) ** 0.5 or 1.0 for name in known} if judged else {}
    )
    for number in range(passes):
        for record, (first, second), scores in judged:
            draw = random.Random(keyed_seed(seed, "principles", record.id, first, second, number))
            count = 1
            while count < min(most, len(scores)) and draw.random() > stop:
                count += 1
            drawn = draw.sample(sorted(scores), count)
            negated = [name for name in drawn if draw.random() < negate]
            _, score = dominant({name: scores[name] / spread[name] for name in drawn}, negated)
            score *= -1 if draw.random() < flip else 1
            if score == 0:
                continue
            texts = [known[name].reads(name in negated) for name in drawn]
            better, worse = (first, second) if score > 0 else (second, first)
            yield Record(
                id=f"{record.id}/{first}-{second}/{number}",
                prompt=with_principles(record.prompt, texts),
                candidates=(record.candidates[better], record.candidates[worse]),
                feedback=(Comparison(ranking=((0,), (1,))),),
                group=record.group,
                tags=record.tags,
                conditions={**record.conditions, "principles": ",".join(f"{'-' if n in negated else ''}{n}" for n in drawn)},
                provenance=record.provenance,
                licence=record.licence,
            )


def _scores(record: Record, known: Mapping[str, Principle]) -> dict[tuple[int, int], dict[str, float]]:
    """Return, by pair of candidates (lower index first), how much each principle prefers the first; votes are added up."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for feedback in record.feedback:
        if not isinstance(feedback, Comparison):
            continue
        if feedback.aspect not in known:
            names = ", ".join(sorted(known)) or "none"
            raise RecordError(f"record {record.id!r} compares by {feedback.aspect!r}, which is no principle; known: {names}")
        for better, worse in strict_pairs(feedback):
            if record.candidates[better].prompt or record.candidates[worse].prompt:
                continue
            pair = (min(better, worse), max(better, worse))
            score = (1.0 if feedback.strength is None else feedback.strength) * (1 if better < worse else -1)
            votes = found.setdefault(pair, {})
            votes[feedback.aspect] = votes.get(feedback.aspect, 0.0) + score
    return found
