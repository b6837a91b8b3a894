"""Minari's layout (Younis et al. 2024, github.com/Farama-Foundation/Minari): an HDF5 file of episodes and a metadata.json.

``data/main_data.hdf5`` has a group per episode: observations ``[T + 1, ...]``, actions, rewards, terminations and truncations
``[T]``, infos; ``id``, ``seed`` and ``total_steps`` are its attributes. We add ``polyalign_task``, the prompt, which Minari
passes over. Files of that layout by other writers are read too, without a metadata.json if need be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from polyalign.errors import RecordError
from polyalign.records.atomic import write_text
from polyalign.records.importing.base import Row
from polyalign.records.schema import Message, TextPart
from polyalign_action.layouts.episodes import Episode, EpisodeImporter, episode, episodes_of, folder_name, numbered
from polyalign_action.tasks import Task, task_of

DATA, METADATA, TASK, VERSION = "data/main_data.hdf5", "metadata.json", "polyalign_task", "0.5.4"
NEEDED = ("observations", "actions", "rewards", "terminations", "truncations")


class Minari(EpisodeImporter):
    """Reads a Minari data set: its folder, or its HDF5 file."""

    def files(self, source: Path) -> dict[str, tuple[Path, ...]]:
        candidates = (source,) if source.is_file() else (source / DATA, source / Path(DATA).name)
        for file in candidates:
            if file.is_file():
                return {"train": (file,)}
        raise RecordError(f"{source} is no Minari data set: expected {DATA}, or an .hdf5 file")

    def rows(self, file: Path) -> Iterator[tuple[int, Row]]:
        yield from numbered(self._episodes(file))

    def _episodes(self, file: Path) -> Iterator[Episode]:
        import h5py

        environment = _environment(file)
        with h5py.File(file) as groups:
            for name in sorted((key for key in groups if key.startswith("episode_")), key=lambda key: int(key[8:])):
                yield _read(groups[name], name, environment)


def _read(group: Any, name: str, environment: str) -> Episode:
    if missing := [key for key in NEEDED if key not in group]:
        raise RecordError(f"{name} lacks {', '.join(missing)}; found: {', '.join(group)}")
    seed = group.attrs.get("seed")
    task = Task(environment, None if seed is None or seed is False else int(seed))
    if TASK in group.attrs:
        task = task_of((Message(role="user", parts=(TextPart(text=str(group.attrs[TASK])),)),))
    infos = group.get("infos", {})
    judged = next((infos[key][()] for key in ("success", "is_success") if key in infos), None)
    actions = group["actions"]
    return episode(
        task,
        _numbers(group["observations"], name),
        actions[()] if not hasattr(actions, "keys") else _numbers(actions, name),
        group["rewards"][()],
        bool(group["terminations"][-1]),
        None if judged is None else bool(np.any(judged)),
    )


def _numbers(node: Any, name: str) -> np.ndarray:
    """Return ``[T, O]``: an array flattened per step, or the arrays of a dictionary side by side, by key as gymnasium has it."""
    if hasattr(node, "keys"):
        return np.concatenate([_numbers(node[key], name) for key in sorted(node)], 1)
    if not (np.issubdtype(node.dtype, np.number) or node.dtype == np.bool_):
        raise RecordError(f"{name} holds {node.dtype} as {node.name}; expected numbers (or a dictionary of them)")
    return np.asarray(node[()], np.float32).reshape(len(node), -1)


def _environment(file: Path) -> str:
    """Return the id of the environment that metadata.json names; "unknown" where there is none."""
    for folder in (file.parent, file.parent.parent):
        if (path := folder / METADATA).is_file():
            known = json.loads(path.read_text())
            specification = known.get("env_spec")
            specification = json.loads(specification) if isinstance(specification, str) else specification
            return str((specification or {}).get("id", known.get("dataset_id", "unknown")))
    return "unknown"


def write(source: Path, target: Path) -> dict[Path, int]:
    """Write the distinct trajectories of a data set, a Minari folder for each environment; return episodes per file."""
    return {_write(name, episodes, target / folder_name(name)): len(episodes) for name, episodes in episodes_of(source).items()}


def _write(environment: str, episodes: list[Episode], folder: Path) -> Path:
    import h5py

    file = folder / DATA
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w", track_order=True) as groups:
        for number, (one, played) in enumerate((one, one.trajectory) for one in episodes):
            group = groups.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": len(played), TASK: one.task.text})
            if one.task.seed is not None:
                group.attrs["seed"] = one.task.seed
            last = np.arange(len(played)) == len(played) - 1
            group["observations"], group["actions"], group["rewards"] = played.observations, played.actions, played.rewards
            group["terminations"], group["truncations"] = last & played.terminated, last & (not played.terminated)
            if played.success is not None:
                group["infos/success"] = np.append(np.zeros(len(played), bool), played.success)
    first = episodes[0].trajectory
    described = {
        "dataset_id": f"polyalign/{folder.name.lower()}-v0",
        "minari_version": VERSION,
        "env_spec": EnvSpec(environment).to_json(),
        "total_episodes": len(episodes),
        "total_steps": sum(len(one.trajectory) for one in episodes),
        "data_format": "hdf5",
        "observation_space": json.dumps(_box(first.observations.shape[1])),
        "action_space": json.dumps(_action_space([one.trajectory.actions for one in episodes])),
    }
    write_text(folder / "data" / METADATA, json.dumps(described, indent=1))
    return file


def _box(size: int) -> dict[str, Any]:
    bounds = {"low": [float("-inf")] * size, "high": [float("inf")] * size}
    return {"type": "Box", "dtype": "float32", "shape": [size], **bounds}


def _action_space(actions: list[np.ndarray]) -> dict[str, Any]:
    if actions[0].ndim == 2:
        return _box(actions[0].shape[1])
    first, last = (int(bound) for bound in (min(one.min() for one in actions), max(one.max() for one in actions)))
    return {"type": "Discrete", "dtype": "int64", "start": first, "n": last - first + 1}
