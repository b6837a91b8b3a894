"""PPO-max: a rule raises the share of kept instructions from below 0.3 to above 0.8 on prompts never trained on."""

from __future__ import annotations

import animals
from ledger import options

OBJECTIVE = {"name": "ppo_max", "kl_weight": 0.05, "value_warmup": 3, "gae_lambda": 1.0}

if __name__ == "__main__":
    animals.proved("ppo-max-text", "PPO-max", OBJECTIVE, 160, 5e-4, {"minibatches": 1, "epochs": 2}, options(__doc__).smoke)
