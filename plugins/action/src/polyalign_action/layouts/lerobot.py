"""LeRobot's data sets, version 3 (Cadene et al., github.com/huggingface/lerobot): a table of steps and a table of episodes.

``meta/info.json`` names the features, ``data/chunk-*/file-*.parquet`` has a row per step, ``meta/tasks.parquet`` the words of the
tasks, ``meta/episodes/chunk-*/file-*.parquet`` a row per episode. A step is what was seen and what was then done, so that LeRobot
does not keep where the last step led. In episodes of other writers that step is left out; ours keep it, the seed and the
environment in columns ``polyalign/...`` of the table of episodes. Videos and pictures are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyalign.errors import RecordError
from polyalign.records.atomic import write_text
from polyalign.records.importing.base import Row
from polyalign_action.layouts.episodes import (
    UNSEEDED,
    Episode,
    EpisodeImporter,
    episode,
    episodes_of,
    folder_name,
    numbered,
    without_seed,
)
from polyalign_action.tasks import Task

INFO, TASKS = "meta/info.json", "meta/tasks.parquet"
FIRST = "chunk-000/file-000.parquet"
VERSION, RATE = "v3.0", 10  # steps of an environment have no clock: the rate is nominal
SEEN, DONE, REWARD, END, SUCCESS = "observation.state", "action", "next.reward", "next.done", "next.success"
OURS = ("polyalign/environment", "polyalign/seed", "polyalign/goal", "polyalign/terminated", "polyalign/last_observation")
NUMBERS = ("float32", "float64", "int64", "int32", "int16", "uint8", "bool")


class LeRobot(EpisodeImporter):
    """Reads the folder of a LeRobot data set."""

    def files(self, source: Path) -> dict[str, tuple[Path, ...]]:
        info = source / INFO
        if not info.is_file():
            raise RecordError(f"{source} is no LeRobot data set: it has no {INFO}")
        if (version := json.loads(info.read_text()).get("codebase_version")) != VERSION:
            raise RecordError(
                f"{source} is a LeRobot data set of version {version!r}; expected {VERSION}: convert it with lerobot"
            )
        return {"train": (info,)}

    def rows(self, file: Path) -> Iterator[tuple[int, Row]]:
        yield from numbered(_episodes(file.parent.parent, json.loads(file.read_text())))


def _episodes(folder: Path, info: dict[str, Any]) -> Iterator[Episode]:
    features = info["features"]
    seen = [name for name, kind in features.items() if name.startswith("observation.") and kind["dtype"] in NUMBERS]
    if not seen or DONE not in features:
        found = ", ".join(sorted(features))
        raise RecordError(f"{folder / INFO} names the features {found}; expected numbers under observation.*, and {DONE!r}")
    known = {number: words for words, number in _tasks(folder)}
    described = {row["episode_index"]: row for file in sorted(folder.glob("meta/episodes/*/*.parquet")) for row in _table(file)}
    for number, steps in _by_episode(folder):
        about = described.get(number, {})
        words, world = known.get(steps[0]["task_index"], ""), about.get(OURS[0]) or str(info.get("robot_type") or "unknown")
        task = Task(world, goal=tuple(about.get(OURS[2]) or ()), instruction="" if words == world else words)
        observations = [np.concatenate([np.ravel(step[name]) for name in seen]) for step in steps]
        if (last := about.get(OURS[4])) is not None:
            observations.append(np.asarray(last))
        success = [step[SUCCESS] for step in steps if SUCCESS in step]
        yield episode(
            without_seed(task, about.get(OURS[1], UNSEEDED)),
            np.stack(observations),
            _actions(steps, features[DONE]),
            np.array([float(np.ravel(step.get(REWARD, 0.0))[0]) for step in steps]),
            bool(about.get(OURS[3], np.ravel(steps[-1].get(END, False))[0])),
            bool(np.any(success)) if success else None,
        )


def _actions(steps: list[dict[str, Any]], kind: dict[str, Any]) -> np.ndarray:
    """Return ``[T]`` whole numbers where an action is one, else ``[T, A]``."""
    values = np.stack([np.ravel(step[DONE]) for step in steps])
    return values[:, 0] if kind["dtype"].startswith("int") and values.shape[1] == 1 else values.astype(np.float32)


def _by_episode(folder: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield the steps of every episode, in order; an episode may go on in the next file."""
    number, steps = None, list[dict[str, Any]]()
    for file in sorted(folder.glob("data/*/*.parquet")):
        for step in _table(file):
            if step["episode_index"] != number and steps:
                yield int(steps[0]["episode_index"]), steps
                steps = []
            number = step["episode_index"]
            steps.append(step)
    if steps:
        yield int(steps[0]["episode_index"]), steps


def _tasks(folder: Path) -> Iterator[tuple[str, int]]:
    for row in _table(folder / TASKS):
        words = row.get("task", row.get("__index_level_0__"))
        yield str(words), int(row["task_index"])


def _table(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    return rows


def write(source: Path, target: Path) -> dict[Path, int]:
    """Write the distinct trajectories of a data set, a LeRobot folder for each environment; return steps per file."""
    written = {}
    for name, episodes in episodes_of(source).items():
        file = _write(name, episodes, target / folder_name(name))
        written[file] = sum(len(one.trajectory) for one in episodes)
    return written


def _write(environment: str, episodes: list[Episode], folder: Path) -> Path:
    words = list(dict.fromkeys(one.task.instruction or environment for one in episodes))
    steps, about, start = [], [], 0
    for number, one in enumerate(episodes):
        played = one.trajectory
        task = words.index(one.task.instruction or environment)
        steps += [_step(one, at, number, start + at, task) for at in range(len(played))]
        about.append(
            {"episode_index": number, "tasks": [words[task]], "length": len(played)}
            | {"dataset_from_index": start, "dataset_to_index": start + len(played)}
            | {f"{table}/{part}_index": 0 for table in ("data", "meta/episodes") for part in ("chunk", "file")}
            | dict(zip(OURS, _kept(one), strict=True))
        )
        start += len(played)
    _save(folder / "data" / FIRST, steps)
    _save(folder / "meta" / "episodes" / FIRST, about)
    rows = [{"task_index": number, "task": text} for number, text in enumerate(words)]
    _save(folder / TASKS, rows, index="task")
    info = _info(environment, episodes, steps, len(words))
    write_text(folder / "meta" / "stats.json", json.dumps(_statistics(steps, info["features"]), indent=1))
    write_text(folder / INFO, json.dumps(info, indent=1))
    return folder / "data" / FIRST


def _step(one: Episode, at: int, number: int, index: int, task: int) -> dict[str, Any]:
    played, last = one.trajectory, at == len(one.trajectory) - 1
    judged = {} if played.success is None else {SUCCESS: bool(last and played.success)}
    return {
        SEEN: played.observations[at],
        DONE: np.atleast_1d(played.actions[at]),
        REWARD: np.float32(played.rewards[at]),
        END: last,
        **judged,
        "timestamp": np.float32(at / RATE),
        "frame_index": at,
        "episode_index": number,
        "index": index,
        "task_index": task,
    }


def _kept(one: Episode) -> tuple[Any, ...]:
    """Return what LeRobot has no place for, in the order of `OURS`."""
    seed = UNSEEDED if one.task.seed is None else one.task.seed
    return one.task.environment, seed, list(one.task.goal), one.trajectory.terminated, one.trajectory.observations[-1]


def _info(environment: str, episodes: list[Episode], steps: list[dict[str, Any]], tasks: int) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for name, value in steps[0].items():
        array = np.asarray(value)
        features[name] = {"dtype": str(array.dtype), "shape": list(array.shape) or [1], "names": None}
    path = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    return {
        "codebase_version": VERSION,
        "robot_type": environment,
        "total_episodes": len(episodes),
        "total_frames": len(steps),
        "total_tasks": tasks,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": RATE,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": f"data/{path}.parquet",
        "video_path": None,
        "features": features,
    }


def _statistics(steps: list[dict[str, Any]], features: dict[str, Any]) -> dict[str, Any]:
    """Return what LeRobot normalises by: of each feature and dimension its range, mean and deviation."""
    found = {}
    for name in features:
        values = np.stack([np.atleast_1d(step[name]) for step in steps]).astype(np.float64)
        parts = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        found[name] = {part: value.tolist() for part, value in parts.items()} | {"count": [len(values)]}
    return found


def _save(file: Path, rows: list[dict[str, Any]], index: str | None = None) -> None:
    """Write a table; ``index``: the column that pandas is told to take as its index."""
    import pyarrow
    import pyarrow.parquet

    plain = [
        {name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for name, value in row.items()}
        for row in rows
    ]
    kinds = {name: _kind(value) for name, value in rows[0].items() if isinstance(value, np.ndarray | np.generic)}
    inferred = pyarrow.Table.from_pylist(plain).schema
    schema = pyarrow.schema([(field.name, kinds.get(field.name, field.type)) for field in inferred])
    if index is not None:
        columns = [{"name": name, "field_name": name, "pandas_type": "unicode" if name == index else "int64",
                    "numpy_type": "object" if name == index else "int64", "metadata": None} for name in rows[0]]  # fmt: skip
        said = {"index_columns": [index], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
        schema = schema.with_metadata({"pandas": json.dumps(said)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain, schema=schema), file, compression="zstd")


def _kind(value: Any) -> Any:
    import pyarrow

    one = pyarrow.from_numpy_dtype(value.dtype)
    return pyarrow.list_(one) if value.ndim else one
