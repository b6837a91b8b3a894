"""DPO of a language model: our policy against TRL's DPOTrainer, on the same pairs and weights.

    python3 tools/dev.py bench text-dpo [--shape NAME ...] [--mode NAME ...] [--steps 10] [--json FILE] [--no-memory]

The model is a small Llama with LoRA, float32, random weights (they do not change the time of a step). A step is collating, policy
and reference, backward and AdamW. TRL's part is its own trainer's collator and `training_step`, at TRL's defaults but for
``max_length`` (none) and the precision, with the reference live and with ``precompute_ref_log_probs``; see `against_trl` for the
one correction in its favour. Ours:

- ``plain rows``: a row per answer; ``shared rows``: both answers behind one prompt; ``packed rows``: several prompts per row;
- ``cached reference``: reference scores from the cache.

``ceiling`` is the speed-up that counting multiplications would allow, see `flop_ceiling`.
"""

from __future__ import annotations

import sys

from against_trl import Comparison, main
from dpo_contenders import CHECKPOINTED, PLAIN, contenders
from random_models import Shape

SHAPES = {
    "long-prompts": Shape(
        prompts=(600, 420, 500, 280), answers=((60, 80), (40, 50), (70, 30), (60, 60)), per_step=2, tower_layers=0
    ),
    "long-answers": Shape(
        prompts=(60, 40, 80, 60), answers=((300, 220), (120, 160), (250, 280), (90, 140)), per_step=2, tower_layers=0
    ),
    "tiny": Shape(
        prompts=(40, 24, 30, 50), answers=((8, 12), (9, 5), (6, 6), (10, 7)), per_step=2, hidden=128, layers=2, tower_layers=0
    ),
}
COMPARISON = Comparison(
    name="text-dpo",
    script=__file__,
    about=__doc__,
    shapes=SHAPES,
    modes=(PLAIN, CHECKPOINTED),
    contenders=contenders,
    default=("long-prompts", "long-answers"),
)

if __name__ == "__main__":
    sys.exit(main(COMPARISON))
