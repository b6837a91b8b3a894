"""What the layouts share: episodes in and out of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from polyalign.errors import RecordError
from polyalign.records.files import open_file, records_of, splits
from polyalign.records.importing.base import Importer, Row
from polyalign.records.importing.media import IncomingMedia
from polyalign.records.modality import decoded
from polyalign.records.schema import MediaPart, MediaRef, Record
from polyalign_action.episodes import record_of
from polyalign_action.tasks import Task, task_of
from polyalign_action.trajectory import Trajectory, TrajectoryModality

UNSEEDED = -1  # the seed of an episode that nobody can start again


@dataclass(frozen=True)
class Episode:
    """A trajectory, and the task that it answers."""

    task: Task
    trajectory: Trajectory

    def row(self, number: int) -> Row:
        """Return the row an `EpisodeImporter` reads. Episodes of one task and seed are compared; others stand alone."""
        together = self.task.text if self.task.seed is not None else f"episode {number}"
        return {"episode": self, "together": together}


class EpisodeImporter(Importer):
    """Subclasses give `Episode.row`s. Episodes that start alike become candidates of one record, ranked by return."""

    group_by = "together"

    def records(self, rows: Sequence[Row], media: IncomingMedia, name: str) -> list[Record]:
        episodes: list[Episode] = [row["episode"] for row in rows]

        def add(data: bytes, modality: str, mime: str) -> MediaRef:
            return media.part(data, modality, "episode").media

        return [record_of(name, episodes[0].task, [one.trajectory for one in episodes], add)]


def episodes_of(source: Path) -> dict[str, list[Episode]]:
    """Return every distinct trajectory among the candidates of a data set, by environment. What was said of them is left behind.

    Raises `RecordError` if there are none.
    """
    found: dict[str, dict[str, Episode]] = {}
    for files in splits(source).values():
        for file in map(open_file, files):
            for record in records_of(file):
                for number, candidate in enumerate(record.candidates):
                    task = task_of(record.prompt_of(number))
                    for part in candidate.parts:
                        if isinstance(part, MediaPart) and part.media.modality == TrajectoryModality.name:
                            episode = Episode(task, decoded(part.media, file.media))
                            found.setdefault(task.environment, {})[part.media.sha256] = episode
    if not found:
        raise RecordError(f"{source} holds no trajectories; this layout is for episodes (modality {TrajectoryModality.name!r})")
    return {name: list(episodes.values()) for name, episodes in found.items()}


def folder_name(environment: str) -> str:
    """Return the name of the folder that holds the episodes of an environment: these layouts have one kind of space each."""
    return environment.replace("/", "-").replace(":", "-")


def episode(task: Task, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, terminated: bool,
            success: bool | None) -> Episode:  # fmt: skip
    """Return an episode of T steps, observations ``[T + 1, O]`` or, where the last one was not kept, ``[T, O]``: its last step
    is then left out, as nobody saw where it led."""
    steps = len(actions) if len(observations) > len(actions) else len(actions) - 1
    trajectory = Trajectory(
        environment=task.environment,
        seed=UNSEEDED if task.seed is None else task.seed,
        observations=observations[: steps + 1].astype(np.float32).reshape(steps + 1, -1),
        actions=actions[:steps],
        rewards=rewards[:steps].astype(np.float32),
        terminated=terminated and steps == len(actions),
        success=success,
    )
    return Episode(task, trajectory)


def without_seed(task: Task, seed: int) -> Task:
    """Return the task with the seed that a layout keeps beside it; `UNSEEDED` is none."""
    return replace(task, seed=None if seed == UNSEEDED else seed)


def numbered(episodes: Iterator[Episode]) -> Iterator[tuple[int, Row]]:
    """Yield what `Importer.rows` does."""
    for number, one in enumerate(episodes, 1):
        yield number, one.row(number)
