"""Episodes as preference records: trajectories under one task, ranked by what they were worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polyalign.records.schema import Candidate, Comparison, MediaPart, MediaRef, Rating, Record
from polyalign_action.tasks import Task
from polyalign_action.trajectory import MIME, Trajectory, TrajectoryModality

Add = Callable[[bytes, str, str], MediaRef]  # `MediaStore.add`


def candidate_of(trajectory: Trajectory, add: Add, **settings: object) -> Candidate:
    """Return the candidate whose only part is this trajectory, its bytes stored by ``add(data, modality, mime)``."""
    ref = add(TrajectoryModality().encode(trajectory, MIME), TrajectoryModality.name, MIME)
    return Candidate(parts=(MediaPart(media=ref),), **settings)  # type: ignore[arg-type]


def record_of(
    name: str, task: Task, trajectories: Sequence[Trajectory], add: Add, returns: Sequence[float] | None = None
) -> Record:
    """Return one record: the trajectories ranked by return (their own, unless given), equal ones tied, with the returns as
    ratings on the scale from the lowest to the highest. One trajectory is compared with nothing. ``conditions`` name
    environment and seed."""
    values = [trajectory.discounted() for trajectory in trajectories] if returns is None else list(returns)
    levels = sorted(set(values), reverse=True)
    scale = (levels[-1], levels[0])
    rated = enumerate(values) if len(levels) > 1 else ()
    return Record(
        id=name,
        prompt=task.prompt(),
        candidates=tuple(candidate_of(trajectory, add) for trajectory in trajectories),
        feedback=()
        if len(values) == 1
        else (
            Comparison(ranking=tuple(tuple(n for n, value in enumerate(values) if value == level) for level in levels)),
            *(Rating(candidate=n, value=value, scale=scale, aspect="return") for n, value in rated),
        ),
        conditions={"environment": task.environment} | ({} if task.seed is None else {"seed": task.seed}),
    )
