"""PPO-max: a rule raises the share of kept instructions from below 0.3 to above 0.8 on prompts never trained on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import animals
from ledger import Proof, options

OBJECTIVE = {"name": "ppo_max", "kl_weight": 0.05, "value_warmup": 3, "gae_lambda": 1.0}


def main() -> None:
    smoke = options(__doc__).smoke
    claim = "on held-out prompts the mean reward is below 0.3 before and above 0.8 after PPO-max"
    proof = Proof("ppo-max-text", claim, smoke)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        animals.write_data(folder / "data")
        base = animals.imitated(folder, 20 if smoke else 500)
        rows = animals.rewarded(folder, base, OBJECTIVE, 2 if smoke else 160, {"minibatches": 1, "epochs": 2}, 5e-4)
    first, last = rows[0], rows[-1]
    (held_out,) = (name for name in first if "held_out" in name and not name.endswith("_std"))
    proof.settle(
        first["eval/reward"] < 0.3 and last["eval/reward"] > 0.8,
        reward={"before": first["eval/reward"], "after": last["eval/reward"]},
        held_out_reward={"before": first[held_out], "after": last[held_out]},
        over_time=[{"step": row["step"], "reward": row["eval/reward"], "held_out": row[held_out]} for row in rows],
        length=last["eval/rollout/length"],
        perplexity=last["eval/rollout/perplexity"],
    )


if __name__ == "__main__":
    main()
