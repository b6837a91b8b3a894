"""GRPO: a rule raises the share of kept instructions from below 0.3 to above 0.8 on prompts never trained on."""

from __future__ import annotations

import animals
from ledger import options

OBJECTIVE = {"name": "grpo", "kl_weight": 0.1}

if __name__ == "__main__":
    animals.proved("grpo-text", "GRPO", OBJECTIVE, 70, 4e-4, {}, options(__doc__).smoke)
