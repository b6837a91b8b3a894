"""BabyAI and Meta-World look like any environment of numbers: seeds decide the start, success is told, missions are words."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from polyalign.errors import ConfigError, RecordError
from polyalign.records.files import open_file, records_of
from polyalign.records.modality import decoded
from polyalign.records.schema import MediaPart
from polyalign.rewards.base import Judged
from polyalign_action.config import ActionConfig
from polyalign_action.environments import Spaces, open_environment, play, time_limit
from polyalign_action.policy import build
from polyalign_action.shipped import manipulation
from polyalign_action.tasks import Task, task_of
from polyalign_action.trajectory import MIME, Trajectory, TrajectoryModality
from polyalign_action.worlds import mission_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GRID = "BabyAI-GoToLocal-v0"


def replayed(trajectory: Trajectory, steps: int) -> Trajectory:
    with closing(open_environment(trajectory.environment)) as environment:
        (again,) = play(
            [environment],
            [trajectory.seed],
            [steps],
            Spaces.of(environment),
            lambda seen, numbers, step: torch.from_numpy(trajectory.actions[step : step + 1]),
        )
    return again


@pytest.mark.parametrize(
    ("split", "package"), [("go-to-test", "minigrid"), pytest.param("button-press-test", "metaworld", marks=pytest.mark.slow)]
)
def test_stored_episodes_replay_to_what_they_say(split: str, package: str) -> None:
    """The first record of a shipped split: the environment sees, pays and judges again as it did; its ranking is by that."""
    pytest.importorskip(package)
    file = open_file(manipulation() / f"{split}.parquet")
    record = next(records_of(file))
    solved = []
    for candidate in record.candidates:
        (part,) = (part for part in candidate.parts if isinstance(part, MediaPart))
        episode = decoded(part.media, file.media)
        again = replayed(episode, len(episode))
        np.testing.assert_allclose(again.observations, episode.observations, atol=1e-5)
        np.testing.assert_allclose(again.rewards, episode.rewards, atol=1e-4)
        assert again.success is episode.success is candidate.conditions["success"]
        solved.append((not episode.success, len(episode) if episode.success else 0))
    order = [number for tier in record.feedback[0].ranking for number in tier]  # type: ignore[union-attr]
    assert [solved[number] for number in order] == sorted(solved)


def test_the_words_of_a_mission_are_read_from_the_prompt() -> None:
    """Two missions in one place: other words, other actions; a prompt without words is refused."""
    pytest.importorskip("minigrid")
    policy = build(ActionConfig(environment=GRID, hidden=(16,), instruction=32, max_steps=8))
    with torch.no_grad():
        policy.actor[-1].weight.mul_(100)  # type: ignore[index, union-attr, operator]
    with closing(open_environment(GRID)) as environment:
        environment.reset(seed=3)
        mission = mission_of(environment)
        assert time_limit(environment, None) == 64
    task = Task(GRID, 3, instruction=mission)
    assert mission.startswith("go to") and task_of(task.prompt()) == task
    batch = [policy.generate([Task(GRID, 3, instruction=words).prompt()])[0] for words in (mission, "go to the grey box")]
    (score, other) = (policy(policy.collator.of_rollouts([rollout])).log_probs for rollout in batch)
    torch.testing.assert_close(score[0, 0], batch[0].old_log_probs)
    assert not torch.allclose(score[0, 0, 0], other[0, 0, 0])
    with pytest.raises(RecordError, match=r"has no instruction; the policy reads one"):
        policy.generate([Task(GRID, 3).prompt()])


def test_what_the_environment_says_is_what_the_reward_success_reads() -> None:
    from polyalign.plugins.registry import registry

    codec = TrajectoryModality()
    made = [
        Trajectory("X", 0, np.zeros((2, 1)), np.zeros(1, np.int64), np.zeros(1), True, success) for success in (True, False, None)
    ]
    read = [codec.decode(codec.encode(one, MIME)) for one in made]
    assert [one.success for one in read] == [True, False, None]
    spec = registry().get("rewards", "success")
    reward = spec.load()(spec.load_config()())
    assert reward.score([Judged.of(Task("X").prompt(), one) for one in read[:2]]) == [1.0, 0.0]
    assert Judged.of(Task("X").prompt(), read[0], {"success": 0.5}).info == {"success": 0.5}


def test_an_unknown_task_of_meta_world_is_named_with_the_known_ones() -> None:
    pytest.importorskip("metaworld")
    with pytest.raises(ConfigError, match=r"no task 'fly-v3'; it has: .*drawer-open-v3"):
        open_environment("MetaWorld/fly-v3")


def test_manipulation_holds_what_its_card_says() -> None:
    """Counted in the records: experts solve everything, the wrong goal hardly anything."""
    counts = {}
    for split in ("drawer-open", "button-press", "go-to"):
        records = list(records_of(open_file(Path(manipulation()) / f"{split}.parquet")))
        for script in ("expert", "wrong-goal"):
            wins = [bool(one.conditions["success"]) for record in records for one in record.candidates if one.producer == script]
            counts[split, script] = (sum(wins), len(wins))
    assert counts == {
        ("drawer-open", "expert"): (96, 96),
        ("drawer-open", "wrong-goal"): (0, 96),
        ("button-press", "expert"): (96, 96),
        ("button-press", "wrong-goal"): (1, 96),
        ("go-to", "expert"): (240, 240),
        ("go-to", "wrong-goal"): (18, 240),
    }
