"""CartPole-v1 by a recipe, judged on 100 starting states that no training has seen: shared by the proofs cartpole-*."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ledger import Proof

import polyalign
from polyalign.evaluation.intervals import bootstrap
from polyalign_action.config import ActionConfig
from polyalign_action.policy import ActionPolicy, build
from polyalign_action.tasks import Task

SOLVED = 400.0
HELD_OUT = range(50_000, 50_100)  # seeds; the data set's are below 2,000


def returns(policy: ActionPolicy, seeds: range = HELD_OUT, greedy: bool = False) -> list[float]:
    """Return one episode's return per starting state, actions drawn from the policy (or the likeliest ones)."""
    prompts = [Task("CartPole-v1", seed).prompt() for seed in seeds]
    return [rollout.output.discounted() for rollout in policy.generate(prompts, seed=1, greedy=greedy)]


def prove(objective: str, smoke: bool, shortened: dict[str, Any]) -> None:
    """Train the recipe ``action/OBJECTIVE-cartpole`` and settle whether it solves CartPole. ``shortened``: of a smoke run."""
    claim = f"the mean return over 100 held-out starting states is at least {SOLVED:.0f} after {objective.upper()}"
    proof = Proof(f"cartpole-{objective}", claim, smoke)
    seeds = HELD_OUT[:5] if smoke else HELD_OUT
    with tempfile.TemporaryDirectory() as place:
        recipe = f"action/{objective}-cartpole"
        run = polyalign.train(recipe, out=Path(place) / "run", **{"report.prompts": 0}, **(shortened if smoke else {}))
        config = ActionConfig(base=str(run.folder / "model"))
        before, after = build(config.model_copy(update={"base": None})), build(config)
        found = {"before": bootstrap(returns(before, seeds)), "after": bootstrap(returns(after, seeds))}
        greedy = bootstrap(returns(after, seeds, greedy=True))
    proof.settle(
        found["after"].mean >= SOLVED,
        held_out_return={name: vars(interval) for name, interval in found.items()},
        held_out_return_greedy=vars(greedy),
        steps=run.trained.steps,
        last_training_return=run.trained.metrics["reward"],
    )
