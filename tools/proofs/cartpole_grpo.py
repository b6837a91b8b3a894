"""GRPO solves CartPole-v1: a mean return of at least 400 on starting states it was not trained on."""

from __future__ import annotations

from cartpole import prove
from ledger import options

SHORT = {"training.steps": 8, "training.eval_every": None}

if __name__ == "__main__":
    prove("grpo", options(__doc__).smoke, SHORT)
