"""Trajectories: written and read back bit for bit, refused where damaged, shown and ranked."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyalign.errors import MediaError, RecordError
from polyalign.records.schema import Comparison, MediaPart
from polyalign.records.store import MediaStore
from polyalign.records.views import VIEWS
from polyalign.rewards.base import Judged
from polyalign_action.config import ReturnConfig
from polyalign_action.episodes import record_of
from polyalign_action.rewards import ReturnReward
from polyalign_action.tasks import Task, task_of
from polyalign_action.trajectory import MIME, Trajectory, TrajectoryModality

CODEC = TrajectoryModality()


def episode(steps: int = 3, seed: int = 0, real: bool = False) -> Trajectory:
    draw = np.random.default_rng(seed)
    actions = draw.normal(size=(steps, 2)).astype(np.float32) if real else draw.integers(0, 2, steps)
    observations = draw.normal(size=(steps + 1, 4)).astype(np.float32)
    return Trajectory("CartPole-v1", seed, observations, actions, np.ones(steps, np.float32), terminated=True)


@pytest.mark.parametrize("real", [False, True])
def test_a_trajectory_comes_back_as_it_was_written(real: bool) -> None:
    written = episode(real=real)
    read = CODEC.decode(CODEC.encode(written, MIME))
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype
    assert (read.environment, read.seed, read.terminated) == ("CartPole-v1", 0, True)


def test_equal_trajectories_give_equal_bytes_in_every_process() -> None:
    """Else the same episode would have another hash, and be stored twice, in every run."""
    program = (
        "import hashlib, numpy as np; from polyalign_action.trajectory import *;"
        "t = Trajectory('E', 3, np.zeros((3, 2), 'f4'), np.zeros(2, 'i8'), np.ones(2, 'f4'), False);"
        "print(hashlib.sha256(TrajectoryModality().encode(t, MIME)).hexdigest())"
    )
    printed = {subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(printed) == 1


def test_sniffing_knows_trajectories_from_other_safetensors() -> None:
    from safetensors.numpy import save

    assert CODEC.sniff(CODEC.encode(episode(), MIME)) == MIME
    assert CODEC.sniff(save({"observations": np.zeros(2)})) is None
    assert CODEC.sniff(b"") is None and CODEC.sniff(b"\x89PNG\r\n\x1a\n" + bytes(100)) is None


def test_cost_is_the_number_of_steps_and_has_a_limit() -> None:
    data = CODEC.encode(episode(7), MIME)
    assert CODEC.cost(data) == 7

    class Short(TrajectoryModality):
        longest = 6

    with pytest.raises(MediaError, match="7 steps is too long; the limit is 6"):
        Short().decode(data)


def test_damaged_bytes_and_impossible_arrays_are_refused() -> None:
    data = CODEC.encode(episode(), MIME)
    with pytest.raises(MediaError, match="damaged"):
        CODEC.decode(data[:-4])
    with pytest.raises(MediaError, match="not a trajectory"):
        CODEC.decode(b"not a trajectory")
    right = episode()
    for wrong in (
        replace(right, observations=right.observations[:-1]),
        replace(right, actions=right.actions[:-1]),
        replace(right, actions=right.actions[:, None]),
        replace(right, rewards=np.zeros(0)),
    ):
        with pytest.raises(MediaError, match=r"expected \[T \+ 1, O\]"):
            CODEC.encode(wrong, MIME)
    with pytest.raises(MediaError, match="not finite"):
        CODEC.encode(replace(right, rewards=np.array([0.0, np.nan, 1.0])), MIME)
    with pytest.raises(MediaError, match="text/plain"):
        CODEC.encode(right, "text/plain")


def test_previews_draw_and_survive_damage_and_hostile_names() -> None:
    shown = CODEC.preview_html(CODEC.encode(replace(episode(), environment="<b>"), MIME), MIME)
    assert shown.count("<polyline") == 4 and "3 steps, ended, return 3" in shown and "<b>" not in shown
    assert "not a trajectory" in CODEC.preview_html(b"x", MIME)


@pytest.mark.parametrize(
    "task",
    [Task("CartPole-v1"), Task("CartPole-v1", 0), Task("my_module:My/Env-v0", 12, (0.5, -1e-7)), Task("A-v0", None, (3.0,))],
)
def test_a_task_is_read_back_from_its_prompt(task: Task) -> None:
    assert task_of(task.prompt()) == task


def test_prompts_that_name_no_task_are_refused() -> None:
    from polyalign.records.schema import Message

    for text in ("balance the pole, please", "CartPole-v1, seed -1", "CartPole-v1, goal", ""):
        with pytest.raises(RecordError, match="names no task"):
            task_of((Message(role="user", parts=text),))  # type: ignore[arg-type]


def test_returns_are_discounted_sums() -> None:
    """1 + 1/2 + 1/4 for three unit rewards at discount 1/2."""
    items = [Judged((), episode(3))]
    assert ReturnReward().score(items) == [3.0]
    assert ReturnReward(ReturnConfig(discount=0.5)).score(items) == [1.75]
    with pytest.raises(MediaError, match="found str"):
        ReturnReward().score([Judged((), "words")])


def test_records_rank_by_return_with_ties(tmp_path: Path) -> None:
    """Returns 2, 5, 5: the two long episodes tie above the short one; pairs come out of it, ties give none."""
    store = MediaStore(tmp_path)
    record = record_of("r", Task("CartPole-v1", 4), [episode(2), episode(5, 1), episode(5, 2)], store.add)
    (ranking,) = [feedback for feedback in record.feedback if isinstance(feedback, Comparison)]
    assert ranking.ranking == ((1, 2), (0,)) and record.conditions == {"environment": "CartPole-v1", "seed": 4}
    examples = VIEWS["pairs"](record, store)
    assert len(examples) == 2
    (part,) = examples[0].samples[0].response
    assert isinstance(part, MediaPart) and len(CODEC.decode(store.read(part.media))) == 5
    assert {rating.value for rating in examples[0].ratings} == {0.0, 1.0}
