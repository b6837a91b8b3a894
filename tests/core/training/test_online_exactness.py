"""An online run is the same run however its steps are split, on two processes, and after being killed between rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys.jobs import run_jobs, untimed
from toys.rolling import ONLINE

# ppo_max depends on the rest of a round in every way that the others do; they are run as well, but less often
OBJECTIVES = ["ppo_max", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "rloo", "reinforce_pp", "online_dpo"))]
STEPS = 8
TRAINING = {"steps": STEPS, "batch_size": 4, "optimizer": {"learning_rate": 0.05}, "eval_every": 4}
SPLITS: dict[str, dict[str, Any]] = {"one by one": {"micro_batch_size": 1}, "uneven": {"micro_batch_size": 3}, "two": {}}


@pytest.fixture(scope="module", params=OBJECTIVES)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    job = {"training": TRAINING, "objective": request.param, "online": ONLINE}
    jobs: dict[str, dict[str, Any]] = {"whole": dict(job)}
    for split, settings in SPLITS.items():
        processes = {"processes": 2} if split == "two" else {}
        jobs[split] = job | {"training": TRAINING | settings} | processes
    return {"objective": request.param, **run_jobs(tmp_path_factory.mktemp("online"), jobs)}


@pytest.mark.parametrize("split", SPLITS)
def test_split_steps_and_two_processes_are_the_same_run(runs: dict[str, Any], split: str) -> None:
    """Responses have one to three decisions, so a mean of means would be off by far; whitening and running moments are of the
    whole round. Two rounds of two minibatches and two passes: ratios leave 1, and later responses depend on what was learnt."""
    whole, other = runs["whole"], runs[split]
    assert other["gradient"] == pytest.approx(whole["gradient"], abs=2e-6)
    assert other["weights"] == pytest.approx(whole["weights"], abs=2e-5)
    assert other["state"] == pytest.approx(whole["state"], abs=1e-5)
    for expected, found in zip(untimed(whole["rows"]), untimed(other["rows"]), strict=True):
        assert found == pytest.approx(expected, abs=2e-4, rel=1e-4)


def test_metrics_tell_rewards_lengths_and_how_far_the_policy_went(runs: dict[str, Any]) -> None:
    rows, objective = runs["whole"]["rows"], runs["objective"]
    told = {"reward", "reward_std", "reward/near", "reward/near_std", "reward/held_out/length", "rollout/length"}
    assert told | {"rollout/perplexity", "rollout/flat_groups"} <= rows[-1].keys()
    assert {f"eval/{name}" for name in told} <= rows[0].keys()
    if objective != "online_dpo":
        assert {"entropy", "clipped", "kl_to_old", "kl"} <= rows[-1].keys()
        assert rows[1]["kl_to_old"] == pytest.approx(0, abs=1e-6)  # the first step of a round scores what it has just generated
        assert rows[4]["kl_to_old"] > 1e-6 or objective == "ppo_max"  # whose first round trains the value head alone


@pytest.mark.parametrize("objective", ["ppo_max", pytest.param("grpo", marks=pytest.mark.slow)])
def test_a_run_killed_anywhere_resumes_to_the_same_run(tmp_path: Path, objective: str) -> None:
    """Checkpoints lie between rounds; the kills come within rounds, whose responses are drawn again as they were. PPO-max's
    moments of all rewards so far, and its count of rounds, come back too, and so do the weights that lag behind."""
    training = TRAINING | {"micro_batch_size": 2, "checkpoint": {"every": 4, "keep_last": 3}, "eval_every": None}
    job = {"training": training, "objective": objective, "online": ONLINE | {"lag": {"growth": 0.6, "most": 0.6}}}
    jobs: dict[str, dict[str, Any]] = {"whole": dict(job)}
    moments = ["forward:11", "forward:27", "write:1"]
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
