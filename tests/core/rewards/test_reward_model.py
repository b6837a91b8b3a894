"""A run trains a reward model on text alone; its folder is a reward, and says how far it can be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from polyalign.config import load_recipe
from polyalign.errors import RewardError
from polyalign.evaluation import run as evaluation
from polyalign.records.schema import Candidate, Comparison, Record
from polyalign.rewards.base import Judged
from polyalign.rewards.reward_model import RewardModelReward
from polyalign.rewards.reward_model_config import RewardModelRewardConfig
from polyalign.training import run

WORDS = ("kind", "clear", "rude", "vague")


def write(path: Path, first: int) -> None:
    """Kind or clear answers are better than rude or vague ones; one person per record, by turns."""
    rows = []
    for number in range(first, first + 24):
        good, bad = WORDS[number % 2], WORDS[2 + number // 2 % 2]
        record = Record(
            id=f"r{number}",
            prompt=f"Question {number}?",
            candidates=(Candidate(parts=f"a {good} answer {number}"), Candidate(parts=f"a {bad} answer {number} and more")),
            feedback=(Comparison(ranking=((0,), (1,)), annotator=f"person {number % 2}"),),
        )
        rows.append(record.model_dump_json())
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward model")
    write(folder / "train.jsonl", 0)
    write(folder / "eval.jsonl", 24)
    recipe = {
        "name": "words",
        "policy": {"name": "encoder-features", "features": "response"},
        "data": {"train": [{"path": str(folder / "train.jsonl")}], "eval": [{"path": str(folder / "eval.jsonl")}]},
        "objective": {"name": "bradley_terry"},
        "training": {"steps": 30, "optimizer": {"learning_rate": 0.05}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run.train(load_recipe(str(folder / "recipe.yaml")), folder / "run")
    return folder / "run"


def test_the_run_reports_accuracy_per_person_and_the_pull_of_length(finished: Path):
    found = json.loads((finished / "reward_model.json").read_text())
    report = (finished / "report.html").read_text()
    assert f"{found['comparisons']} comparisons: the reward model agrees with {found['accuracy']['mean']:.3f}" in report
    assert found["comparisons"] == 24
    assert found["accuracy"]["mean"] == 1.0
    assert set(found["annotators"]) == {"person 0", "person 1"}
    assert found["longer_is_preferred"]["mean"] == found["prefers_longer"]["mean"] == 0.0
    assert found["length_slope"]["high"] < 0  # the better answer is two words shorter
    assert 0 < found["calibration_error"]["mean"] < 0.5
    said = evaluation.score(load_recipe(str(finished)), finished)
    assert said.startswith("24 comparisons: the reward model agrees with 1.000")


def test_its_folder_is_a_reward_that_scores_in_any_batches(finished: Path):
    items = [Judged(load_prompt(), f"a {word} answer") for word in WORDS]
    scores = RewardModelReward(RewardModelRewardConfig(run=str(finished))).score(items)
    assert min(scores[:2]) > max(scores[2:])
    one_by_one = RewardModelReward(RewardModelRewardConfig(run=str(finished), batch_size=1)).score(items)
    assert one_by_one == pytest.approx(scores, abs=1e-6)


def load_prompt() -> tuple:
    return Record(id="x", prompt="Question?", candidates=(Candidate(parts="x"),)).prompt


def test_other_folders_and_other_models_are_refused(finished: Path, tmp_path: Path):
    with pytest.raises(RewardError, match="no run folder"):
        RewardModelReward(RewardModelRewardConfig(run=str(tmp_path)))
    with pytest.raises(RewardError, match="knows no annotators"):
        RewardModelReward(RewardModelRewardConfig(run=str(finished))).adapt("me", [])
