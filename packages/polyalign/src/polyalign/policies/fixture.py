"""A tiny, random, CPU-sized stand-in of a policy, with records it can read: what the cells test runs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyalign.plugins.specs import PolicySpec, load_attribute
from polyalign.policies.base import Policy
from polyalign.records.samples import MediaSource
from polyalign.records.schema import Record


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


def fixtures_of(spec: PolicySpec) -> tuple[PolicyFixture, ...]:
    """Return the fixtures that the policy declares: one per architecture that it adapts; none if it declares none."""
    if spec.fixture is None:
        return ()
    made = load_attribute(spec.fixture, spec.name)()
    return made if isinstance(made, tuple) else (made,)
