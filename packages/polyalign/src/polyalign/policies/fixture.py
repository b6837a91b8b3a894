"""A tiny, random, CPU-sized stand-in of a policy, with records it can read: what the cells test runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyalign.plugins.specs import PolicySpec, load_attribute
from polyalign.policies.base import Policy
from polyalign.records.samples import MediaSource
from polyalign.records.schema import Candidate, Comparison, Message, Part, Record


@dataclass(frozen=True)
class PolicyFixture:
    """``build()`` returns a fresh policy with equal weights each time.

    ``records``: at least four with one comparison of two candidates under one prompt, then at least two InstructEngine
    grids (tagged "grid": four candidates, each with its own prompt).
    ``with_values``: the same, for objectives that need values, where the policy has a switch for them.
    ``decoding``: how responses are drawn for objectives that need rollouts; ``decoding_whole``: for those that need predictions
    too, and noise whole responses again.
    ``idle``: ends of the names of trainable modules whose output the architecture throws away, so that they never move.
    """

    build: Callable[[], Policy]
    records: Sequence[Record]
    media: MediaSource | None = None
    learning_rate: float = 1e-3
    idle: tuple[str, ...] = ()
    with_values: Callable[[], Policy] | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    decoding_whole: Mapping[str, Any] = field(default_factory=dict)


def grid(name: str, prompts: Sequence[tuple[Message, ...]], answers: Sequence[tuple[Part, ...]], columns: bool = True) -> Record:
    """Return a grid of two prompts x two answers, each answer better under its own prompt; ``columns``: each prompt is also the
    better one for its own answer."""
    cells = tuple(Candidate(parts=answer, prompt=prompt) for prompt in prompts for answer in answers)
    better_worse = [(0, 1), (3, 2), *([(0, 2), (3, 1)] if columns else [])]
    feedback = tuple(Comparison(ranking=((better,), (worse,))) for better, worse in better_worse)
    return Record(id=name, candidates=cells, feedback=feedback, tags=("grid",))


def fixtures_of(spec: PolicySpec) -> tuple[PolicyFixture, ...]:
    """Return the fixtures that the policy declares: one per architecture that it adapts; none if it declares none."""
    if spec.fixture is None:
        return ()
    made = load_attribute(spec.fixture, spec.name)()
    return made if isinstance(made, tuple) else (made,)
