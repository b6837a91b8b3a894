"""How far a reward model can be trusted: accuracy, calibration, the pull of length, and for whom it works, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from polyalign.evaluation.intervals import Interval
from polyalign.objectives.reward_modeling.base import RewardModel
from polyalign.policies.base import Policy
from polyalign.records.samples import Example, Sample
from polyalign.records.schema import text_of

Numbers = np.ndarray[Any, Any]
RESAMPLES, BINS, AT_ONCE = 1000, 10, 16


@dataclass(frozen=True)
class Preference:
    """One held-out comparison: the head's margin for the side that was preferred, its probability, and by how many decisions
    (of features: words) that side is longer."""

    record: str
    annotator: str
    aspect: str
    margin: float
    probability: float | None
    longer: float


@dataclass(frozen=True)
class Trust:
    """``accuracy``: share of comparisons that the head orders right, a margin of 0 counting half. ``calibration_error``: expected
    gap between how sure it is and how often it is right (ECE, 10 bins, Naeini et al. 2015). ``length_slope``: reward per unit of
    length, the least-squares slope through 0 of margins on differences in length. ``prefers_longer`` and
    ``longer_is_preferred``: how often the head, and people, prefer the longer side where lengths differ. Intervals resample
    records (95 %)."""

    comparisons: int
    accuracy: Interval
    calibration_error: Interval | None
    length_slope: Interval | None
    prefers_longer: Interval | None
    longer_is_preferred: Interval | None
    annotators: dict[str, Interval] = field(default_factory=dict)
    aspects: dict[str, Interval] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        found = [f"{self.comparisons} comparisons: the reward model agrees with {self.accuracy} of them (95 % interval)"]
        for name, value in (
            ("calibration error", self.calibration_error),
            ("reward per unit of length", self.length_slope),
            ("prefers the longer", self.prefers_longer),
            ("people prefer the longer", self.longer_is_preferred),
        ):
            found += [f"  {name}: {value}"] if value is not None else []
        found += [f"  annotator {name!r}: {value}" for name, value in self.annotators.items()]
        return found + [f"  aspect {name!r}: {value}" for name, value in self.aspects.items()]


@torch.no_grad()
def preferences(model: RewardModel, policy: Policy, examples: Sequence[Example]) -> list[Preference]:
    """Return what the model makes of every comparison between two responses to one prompt."""
    from polyalign.objectives.base import FeedbackTensors
    from polyalign.objectives.margins import rows

    device = next(model.parameters()).device
    found = []
    for start in range(0, len(examples), AT_ONCE):
        chunk = examples[start : start + AT_ONCE]
        samples = [sample for example in chunk for sample in example.samples]
        edges = rows(FeedbackTensors.of(chunk).to(device))
        scores = policy(policy.collate(samples).to(device), model.wants)
        margins = model.head_margins(scores, edges)
        sure = model.probabilities(margins)
        length = [_length(sample, int(mask.sum())) for sample, mask in zip(samples, scores.mask[:, 0], strict=True)]
        owner = [example.record_id for example in chunk for _ in example.samples]
        for number, (better, worse) in enumerate(zip(edges.better.tolist(), edges.worse.tolist(), strict=True)):
            found.append(
                Preference(
                    owner[better],
                    edges.annotator[number] or "",
                    edges.aspect[number],
                    float(margins[number]),
                    None if sure is None else float(sure[number]),
                    float(length[better] - length[worse]),
                )
            )
    return found


def _length(sample: Sample, decisions: int) -> int:
    return decisions or len(text_of(sample.response).split())


def trust(found: Sequence[Preference], seed: int = 0) -> Trust:
    """Return the report. Raises `ValueError` for no comparisons."""
    if not found:
        raise ValueError("no comparisons to judge a reward model by")
    margin = np.array([one.margin for one in found])
    hit = (np.sign(margin) + 1) / 2
    longer = np.array([one.longer for one in found])
    records = np.array([one.record for one in found])
    differ = longer != 0

    def over(statistic: Callable[[Numbers], float], chosen: Numbers | None = None) -> Interval | None:
        places = np.arange(len(found)) if chosen is None else np.flatnonzero(chosen)
        return resampled(statistic, places, records, seed) if len(places) else None

    def mean(values: Numbers) -> Callable[[Numbers], float]:
        return lambda at: float(values[at].mean())

    sure = None if any(one.probability is None for one in found) else np.array([one.probability for one in found], float)
    accuracy = over(mean(hit))
    assert accuracy is not None
    groups = {name: np.array([getattr(one, name) for one in found]) for name in ("annotator", "aspect")}
    by = {
        name: {str(value): interval for value in np.unique(of) if (interval := over(mean(hit), of == value)) is not None}
        for name, of in groups.items()
    }
    return Trust(
        len(found),
        accuracy,
        None if sure is None else over(lambda at: calibration_error(sure[at])),
        over(lambda at: float((margin[at] * longer[at]).sum() / (longer[at] ** 2).sum()), differ),
        over(mean((np.sign(margin * longer) + 1) / 2), differ),
        over(mean((np.sign(longer) + 1) / 2), differ),
        by["annotator"] if set(by["annotator"]) != {""} else {},
        by["aspect"] if len(by["aspect"]) > 1 else {},
    )


def calibration_error(probabilities: Numbers) -> float:
    """Return the expected calibration error of probabilities ``[E]`` given to what turned out right: confidence is the larger of
    p and 1 - p, in 10 bins over [0.5, 1]; p of 1/2 is half right."""
    confidence = np.maximum(probabilities, 1 - probabilities)
    right = (np.sign(probabilities - 0.5) + 1) / 2
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(place, confidence - right, BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def resampled(statistic: Callable[[Numbers], float], places: Numbers, clusters: Numbers, seed: int = 0) -> Interval:
    """Return a statistic of rows ``places`` and its percentile-bootstrap interval; whole clusters are resampled."""
    _, of = np.unique(clusters[places], return_inverse=True)
    members = np.split(places[np.argsort(of, kind="stable")], np.cumsum(np.bincount(of))[:-1])
    draw = np.random.default_rng(seed)
    picks = (draw.integers(0, len(members), len(members)) for _ in range(RESAMPLES))
    values = [statistic(np.concatenate([members[number] for number in pick])) for pick in picks]
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(statistic(places)), float(low), float(high))
