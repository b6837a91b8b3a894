"""PPO solves CartPole-v1: a mean return of at least 400 on starting states it was not trained on."""

from __future__ import annotations

from cartpole import prove
from ledger import options

SHORT = {"training.steps": 32, "training.eval_every": None, "online.epochs": 4}

if __name__ == "__main__":
    prove("ppo", options(__doc__).smoke, SHORT)
