"""Episodes go through LeRobot's and Minari's layouts and come back as they were; foreign ones are read as far as they go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from polyalign.cli.data import app
from polyalign.errors import RecordError
from polyalign.records.files import open_file, records_of
from polyalign.records.importing.run import import_data
from polyalign.records.jsonl import write_jsonl
from polyalign.records.modality import decoded
from polyalign.records.schema import MediaPart
from polyalign.records.store import MediaStore
from polyalign_action.episodes import record_of
from polyalign_action.layouts.lerobot import LeRobot
from polyalign_action.layouts.minari import DATA, Minari
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory

h5py = pytest.importorskip("h5py")
LAYOUTS = {"lerobot": LeRobot, "minari": Minari}


def trajectory(steps: int, discrete: bool, seed: int, name: str, success: bool | None = None) -> Trajectory:
    draw = np.random.default_rng([steps, seed])
    actions: Any = draw.integers(0, 3, steps) if discrete else draw.normal(size=(steps, 2)).astype(np.float32)
    seen, paid = draw.normal(size=(steps + 1, 5)).astype(np.float32), draw.normal(size=steps).astype(np.float32)
    return Trajectory(name, seed, seen, actions, paid, steps % 2 == 0, success)


def data_set(folder: Path) -> Path:
    """Two records of two episodes each, in worlds of discrete and of real-valued actions, one of them asked for in words."""
    store = MediaStore(folder)
    walks = [trajectory(steps, True, 3, "Grid/Walk-v0", success) for steps, success in ((4, True), (5, False))]
    arms = [trajectory(steps, False, 8, "Arm-v1") for steps in (2, 7)]
    records = [
        record_of("walk", Task("Grid/Walk-v0", 3, instruction="go to the red ball"), walks, store.add),
        record_of("arm", Task("Arm-v1", 8, (0.5, -1.0)), arms, store.add),
    ]
    write_jsonl(folder / "train.jsonl", records)
    return folder


def episodes_in(folder: Path) -> dict[str, list[Trajectory]]:
    file = open_file(folder / "train.jsonl")
    found: dict[str, list[Trajectory]] = {}
    for record in records_of(file):
        for number, candidate in enumerate(record.candidates):
            (part,) = (part for part in candidate.parts if isinstance(part, MediaPart))
            (said,) = record.prompt_of(number)
            found.setdefault(said.parts[0].text, []).append(decoded(part.media, file.media))  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_episodes_come_back_as_they_were(layout: str, tmp_path: Path) -> None:
    """By the commands that a user has: every number, flag and word; the record's ranking is made anew from the returns."""
    source, run = data_set(tmp_path / "ours"), CliRunner().invoke
    done = run(app, ["export", layout, str(source), str(tmp_path / "theirs")])
    assert done.exit_code == 0, done.output
    before, after = episodes_in(source), {}
    for name in ("Grid-Walk-v0", "Arm-v1"):
        back = tmp_path / "back" / name
        done = run(app, ["import", layout, str(tmp_path / "theirs" / name), str(back)])
        assert done.exit_code == 0, done.output
        after |= episodes_in(back)
        (record,) = records_of(open_file(back / "train.jsonl"))
        best = record.feedback[0].ranking[0][0]  # type: ignore[union-attr]
        returns = [one.discounted() for one in after[record.prompt[0].parts[0].text]]  # type: ignore[union-attr]
        assert returns[best] == max(returns)
    assert list(after) == list(before)
    for task, episodes in before.items():
        for one, other in zip(episodes, after[task], strict=True):
            for name in ("observations", "actions", "rewards"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
                assert getattr(one, name).dtype == getattr(other, name).dtype
            facts = [(each.environment, each.seed, each.terminated, each.success) for each in (one, other)]
            assert facts[0] == facts[1]


def test_minari_reads_what_we_write(tmp_path: Path) -> None:
    minari = pytest.importorskip("minari")
    from polyalign_action.layouts.minari import write

    source = data_set(tmp_path / "ours")
    write(source, tmp_path / "theirs")
    for name, episodes in (("Grid-Walk-v0", 0), ("Arm-v1", 1)):
        read = minari.MinariDataset(tmp_path / "theirs" / name / "data")
        ours = list(episodes_in(source).values())[episodes]
        assert read.total_episodes == 2 and read.total_steps == sum(map(len, ours))
        for one, other in zip(ours, read.iterate_episodes(), strict=True):
            np.testing.assert_array_equal(other.observations, one.observations)
            np.testing.assert_array_equal(other.actions, one.actions)
            assert bool(other.terminations[-1]) == one.terminated


def test_pandas_finds_the_tasks_of_a_lerobot_data_set_by_their_words(tmp_path: Path) -> None:
    """As lerobot looks them up: the words are the index of tasks.parquet."""
    pandas = pytest.importorskip("pandas")
    from polyalign_action.layouts.lerobot import write

    write(data_set(tmp_path / "ours"), tmp_path / "theirs")
    folder = tmp_path / "theirs" / "Grid-Walk-v0"
    tasks = pandas.read_parquet(folder / "meta" / "tasks.parquet")
    assert list(tasks.index) == ["go to the red ball"] and list(tasks.task_index) == [0]
    info = json.loads((folder / "meta" / "info.json").read_text())
    steps = pandas.read_parquet(folder / "data" / "chunk-000" / "file-000.parquet")
    assert info["total_frames"] == len(steps) == 9 and set(steps.columns) == set(info["features"])
    episodes = pandas.read_parquet(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    assert list(episodes.length) == [4, 5] and list(episodes.dataset_to_index) == [4, 9]
    statistics = json.loads((folder / "meta" / "stats.json").read_text())
    np.testing.assert_allclose(statistics["observation.state"]["mean"], np.stack(steps["observation.state"]).mean(0), rtol=1e-5)


def test_a_lerobot_episode_of_others_ends_with_the_last_step_seen(tmp_path: Path) -> None:
    """Four rows without our columns are three steps: where the fourth led nobody knows."""
    from polyalign_action.layouts.lerobot import FIRST, _save, write

    write(data_set(tmp_path / "ours"), tmp_path / "theirs")
    folder = tmp_path / "theirs" / "Grid-Walk-v0"
    _save(folder / "meta" / "episodes" / FIRST, [{"episode_index": 0}, {"episode_index": 1}])
    import_data(LeRobot(), "x", folder, tmp_path / "back")
    episodes = episodes_in(tmp_path / "back")
    assert list(episodes) == ["Grid/Walk-v0: go to the red ball"]
    assert [len(one) for one in episodes["Grid/Walk-v0: go to the red ball"]] == [3, 4]


def test_what_is_no_such_data_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no LeRobot data set: it has no meta/info.json"):
        LeRobot().files(tmp_path)
    with pytest.raises(RecordError, match=r"no Minari data set: expected data/main_data.hdf5"):
        Minari().files(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(RecordError, match=r"version 'v2.1'; expected v3.0"):
        LeRobot().files(tmp_path)


def test_minari_groups_that_lack_something_or_hold_no_numbers_name_it(tmp_path: Path) -> None:
    file = tmp_path / DATA
    file.parent.mkdir()
    with h5py.File(file, "w") as groups:
        groups["episode_0/observations"] = np.zeros((3, 2))
    with pytest.raises(RecordError, match=r"episode_0 lacks actions, rewards, terminations, truncations; found: observations"):
        import_data(Minari(), "x", tmp_path, tmp_path / "back")
