"""Demonstrations of `reach`: experts that go where the mission says, or somewhere else, as episodes and as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch

from polyalign.records.schema import Provenance, Record
from polyalign_action.environments import Spaces, open_environment, play
from polyalign_action.episodes import Add, record_of
from polyalign_action.reach import COLOURS, NEAR, STEPS
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory


def demonstrated(body: str, seed: int, astray: int = 0) -> tuple[Task, Trajectory]:
    """Return the task of this seed and the expert's episode, which goes ``astray`` discs past the one that was named and is cut
    on arrival there."""
    name = f"Reach/{body}"
    with closing(open_environment(name)) as environment:
        inner: Any = environment.unwrapped
        environment.reset(seed=seed)
        target, mission = (inner.target + astray) % len(COLOURS), inner.mission
        steps = STEPS if not astray else inner.steps_to(target)

        def act(seen: torch.Tensor, numbers: Sequence[int], step: int) -> torch.Tensor:
            told = np.asarray(inner.expert(target))
            return torch.from_numpy(told[None] if told.dtype == np.int64 else told[None].astype(np.float32))

        (episode,) = play([environment], [seed], [steps], Spaces.of(environment), act)
    return Task(name, seed, instruction=mission), episode


def from_all_sides(body: str, seeds: Iterable[int], each: int = 2) -> list[int]:
    """Return the first seeds whose disc lies left above, right above, left below and right below of the hand, ``each`` of every
    kind: the expert then goes in every direction alike often."""
    sides: dict[tuple[bool, bool], list[int]] = {}
    with closing(open_environment(f"Reach/{body}")) as environment:
        inner: Any = environment.unwrapped
        for seed in seeds:
            environment.reset(seed=seed)
            across, up = inner.discs[inner.target] - inner.body.hand
            mine = sides.setdefault((bool(across > 0), bool(up > 0)), [])
            if min(abs(across), abs(up)) > NEAR and len(mine) < each:
                mine.append(seed)
    return sorted(seed for mine in sides.values() for seed in mine)


def records(bodies: Iterable[str], seeds: Sequence[int], add: Add, astray: Sequence[int] = (0,)) -> Iterator[Record]:
    """Yield one record per body and seed: an episode for each entry of ``astray``, ranked by return if there are several."""
    provenance = Provenance(source="polyalign_action.reach_demonstrations", method="rule: the environment's own return")
    for body in bodies:
        for seed in seeds:
            episodes = [demonstrated(body, seed, by) for by in astray]
            task = episodes[0][0]
            record = record_of(f"reach-{body.lower()}-{seed}", task, [episode for _, episode in episodes], add)
            feedback = record.feedback if len(episodes) > 1 else ()
            changed = {"feedback": feedback, "tags": (body.lower(),), "provenance": provenance, "licence": "Apache-2.0"}
            yield record.model_copy(update=changed)
