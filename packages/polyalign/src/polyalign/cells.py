"""The matrix of what can train what: every policy x every objective, and why not. Light: no torch here."""

from __future__ import annotations

from dataclasses import dataclass

from polyalign.plugins.registry import Registry, registry
from polyalign.plugins.specs import NEEDS_OF_VIEWS, ObjectiveSpec, PolicySpec

# Needs that data or the trainer meets; everything else an objective needs, the policy must provide.
NEEDS_OF_DATA = NEEDS_OF_VIEWS | {"reference", "ratings", "segments", "self_samples"}
TEST = "tests/cells/test_cells.py::test_cell"


@dataclass(frozen=True)
class Cell:
    """One policy under one objective. ``modality`` is ``inputs->outputs``; ``test`` is the pytest node that proves it,
    None where the cell is not supported; ``reason`` says why not, and is empty where it is."""

    family: str
    policy: str
    modality: str
    objective: str
    supported: bool
    reason: str
    test: str | None


def mismatch(policy: PolicySpec, objective: ObjectiveSpec) -> str:
    """Return why this objective cannot train this policy, or an empty string."""
    if policy.family in objective.unsupported and objective.unless not in {*policy.provides, *policy.switches}:
        return objective.unsupported[policy.family]
    needs = set(objective.needs) | ({"log_probs"} if objective.reads == "log_probs" else set())
    lacking = sorted(needs - set(policy.provides) - set(policy.switches) - NEEDS_OF_DATA)
    if lacking:
        return f"it needs {', '.join(lacking)}; the policy provides {', '.join(sorted(policy.provides))}"
    return ""


def cells(known: Registry | None = None) -> list[Cell]:
    """Return a cell for every installed policy and objective, sorted by policy and objective name.

    A policy without a fixture is not supported: nothing is advertised that no test has seen.
    """
    known = known or registry()
    return [
        _cell(policy.spec, objective.spec)
        for policy in known.entries("policies")
        for objective in known.entries("objectives")
        if isinstance(policy.spec, PolicySpec) and isinstance(objective.spec, ObjectiveSpec)
    ]


def _cell(policy: PolicySpec, objective: ObjectiveSpec) -> Cell:
    reason = mismatch(policy, objective)
    if not reason and policy.fixture is None:
        reason = f"{policy.name!r} declares no fixture, so no test covers it"
    return Cell(
        family=policy.family,
        policy=policy.name,
        modality=f"{'+'.join(policy.inputs) or '-'}->{'+'.join(policy.outputs) or '-'}",
        objective=objective.name,
        supported=not reason,
        reason=reason,
        test=None if reason else f"{TEST}[{policy.name}-{objective.name}]",
    )
