"""One long accumulation window, one big batch, two processes, shards and killed runs are all the same run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from toys.jobs import run_jobs, untimed

STEPS = 12
OBJECTIVES = ("dpo", "kto", "bco", "aot", "mixture")
BIG = {"steps": 6, "batch_size": 8, "optimizer": {"learning_rate": 0.05}, "eval_every": 3}


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    jobs: dict[str, dict[str, Any]] = {}
    for objective in OBJECTIVES:
        jobs[f"{objective} big"] = {"training": BIG, "objective": objective}
        jobs[f"{objective} accumulated"] = {"training": BIG | {"micro_batch_size": 1}, "objective": objective}
        jobs[f"{objective} uneven"] = {"training": BIG | {"micro_batch_size": 3}, "objective": objective}
        jobs[f"{objective} budget"] = {"training": BIG | {"micro_batch_budget": 12}, "objective": objective}
        jobs[f"{objective} two"] = {"training": BIG | {"micro_batch_size": 2}, "objective": objective, "processes": 2}
    jobs["dpo sharded"] = {"training": BIG | {"micro_batch_size": 2, "sharding": "fully_shard"}, "processes": 2}
    return run_jobs(tmp_path_factory.mktemp("splits"), jobs)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("split", ["accumulated", "uneven", "budget", "two"])
def test_split_windows_equal_one_big_batch(splits: dict[str, Any], objective: str, split: str) -> None:
    """Edge weights differ (0.5 to 3.5), so a mean of means would be off by far more than 1e-6."""
    big, other = splits[f"{objective} big"], splits[f"{objective} {split}"]
    assert other["gradient"] == pytest.approx(big["gradient"], abs=1e-6)
    assert other["state"] == pytest.approx(big["state"], abs=1e-6)  # BCO's running baseline
    for expected, found in zip(untimed(big["rows"]), untimed(other["rows"]), strict=True):
        assert found == pytest.approx(expected, abs=2e-6, rel=1e-6)  # scores near -10 have float32 steps of 1e-6


def test_fully_shard_over_two_processes_gives_the_same_first_five_losses(splits: dict[str, Any]) -> None:
    expected = [row["loss"] for row in splits["dpo big"]["rows"] if "loss" in row][:5]
    found = [row["loss"] for row in splits["dpo sharded"]["rows"] if "loss" in row][:5]
    assert len(found) == 5
    assert found == pytest.approx(expected, abs=1e-6, rel=1e-6)  # scores near -10 have float32 steps of 1e-6


LONG = {
    "steps": STEPS,
    "batch_size": 4,
    "micro_batch_size": 2,
    "ema": 0.9,
    "eval_every": 5,
    "optimizer": {"learning_rate": 0.05, "schedule": "cosine", "warmup_steps": 3},
    "checkpoint": {"every": 2, "keep_last": 3},
}


@pytest.mark.parametrize("objective", ["dpo", "bco"])
def test_run_killed_at_any_moment_resumes_to_the_same_metrics(tmp_path: Path, objective: str) -> None:
    """Four kills at random forward passes and one inside a checkpoint write; dropout on, so randomness matters too. BCO's running
    baseline is of all steps before, so it must come back as well."""
    forwards = 2 * 2 * STEPS  # two micro-batches a step; reference and policy share the class, evaluations add some
    picks = sorted(random.Random(7).sample(range(2, forwards), 4))
    moments = [*(f"forward:{number}" for number in picks), "write:2"]
    job = {"training": LONG, "dropout": 0.2, "objective": objective}
    jobs: dict[str, dict[str, Any]] = {"whole": dict(job)}
    for number, moment in enumerate(moments):
        jobs[f"killed {number}"] = job | {"kill": moment, "in": f"run {number}"}
        jobs[f"resumed {number}"] = job | {"resume": True, "in": f"run {number}"}
    results = run_jobs(tmp_path, jobs)
    for number, moment in enumerate(moments):
        assert f"killed {number}" not in results, f"{moment} came after the end of the run"
        resumed = results[f"resumed {number}"]
        assert untimed(resumed["rows"]) == untimed(results["whole"]["rows"]), moment
        assert resumed["weights"] == results["whole"]["weights"]
        assert resumed["state"] == results["whole"]["state"]
