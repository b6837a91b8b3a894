"""CPL on ranked episodes of a Meta-World arm solves more than behaviour cloning of the same episodes."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

from ledger import Proof, options

import polyalign
from polyalign.evaluation.intervals import bootstrap
from polyalign_action.config import ActionConfig
from polyalign_action.policy import build
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory

WORLD = "MetaWorld/button-press-topdown-v3"
HELD_OUT = range(50_000, 50_060)  # seeds; the data set's are below 2,000
SHORT = {"training.steps": 4}
QUIET = {"report.prompts": 0, "training.eval_every": None}


def episodes(model: Path, config: ActionConfig, seeds: range) -> list[Trajectory]:
    """Return one episode per starting state, the likeliest action taken at every step."""
    policy = build(config.model_copy(update={"base": str(model)}))
    prompts = [Task(WORLD, seed).prompt() for seed in seeds]
    return [rollout.output for rollout in policy.generate(prompts, seed=1, greedy=True, batch_size=4)]


def main() -> None:
    smoke = options(__doc__).smoke
    warnings.simplefilter("ignore")
    claim = (
        f"on {len(HELD_OUT)} held-out starts CPL's success rate lies above that of cloning the mixed episodes, intervals apart"
    )
    proof = Proof("metaworld-cpl", claim, smoke)
    seeds, shorter = (HELD_OUT[:3], SHORT) if smoke else (HELD_OUT, {})
    with tempfile.TemporaryDirectory() as place:
        runs: dict[str, Any] = {}

        def train(name: str, recipe: str, **settings: Any) -> None:
            runs[name] = polyalign.train(recipe, out=Path(place) / name, **QUIET, **shorter, **settings)

        train("cloning of all episodes", "action/bc-button-press")
        train("cpl", "action/cpl-button-press", **{"policy.base": str(runs["cloning of all episodes"].folder / "model")})
        config = ActionConfig(environment=WORLD, hidden=(128, 128), activation="relu", max_steps=120)
        played = {name: episodes(run.folder / "model", config, seeds) for name, run in runs.items()}
    success = {name: bootstrap([float(bool(one.success)) for one in each]) for name, each in played.items()}
    steps = {name: bootstrap([float(len(one)) for one in each]) for name, each in played.items()}
    proof.settle(
        success["cpl"].low > success["cloning of all episodes"].high,
        held_out_success={name: vars(interval) for name, interval in success.items()},
        held_out_steps={name: vars(interval) for name, interval in steps.items()},
        training_steps={name: run.trained.steps for name, run in runs.items()},
    )


if __name__ == "__main__":
    main()
