"""DPO of a vision-language model: our policy against TRL's DPOTrainer, on the same pictures, pairs and weights.

    python3 tools/dev.py bench vlm-dpo [--shape NAME ...] [--mode NAME ...] [--steps 10] [--json FILE] [--no-memory]

The model is a small LLaVA with LoRA on its decoder, float32, random weights (they do not change the time of a step). A step is
collating, policy and reference, backward and AdamW. TRL's part is its own trainer's collator and `training_step`, at TRL's
defaults but for ``max_length`` (none) and the precision; see `against_trl` for the one correction in its favour. Ours:

- ``plain rows``: a row per answer; the picture is encoded once per step, for policy and reference;
- ``shared rows``: both answers behind one prompt, so that the decoder too sees the picture once;
- ``cached reference``: reference scores from the cache; ``features``: the picture's features from the cache too.

``ceiling`` is the speed-up that counting multiplications would allow, see `flop_ceiling`. ``tower passes`` counts how often a
picture goes through the tower per step, recomputation included.
"""

from __future__ import annotations

import sys

from against_trl import Comparison, main
from dpo_contenders import CHECKPOINTED, PLAIN, contenders
from random_models import Shape

SHAPES = {
    "llava-576": Shape(prompts=(60, 60), answers=((60, 60), (60, 60)), picture=336),
    "llava-256": Shape(prompts=(60, 60), answers=((60, 60), (60, 60)), picture=224),
    "small-picture": Shape(prompts=(60,) * 4, answers=((60, 60),) * 4, per_step=2, picture=168),
    "long-answers": Shape(prompts=(60, 60), answers=((300, 200), (200, 300)), picture=168),
    "tiny": Shape(prompts=(30, 34), answers=((8, 12), (9, 5)), hidden=128, layers=2, picture=56, tower_hidden=64, tower_layers=2),
}
COMPARISON = Comparison(
    name="vlm-dpo",
    script=__file__,
    about=__doc__,
    shapes=SHAPES,
    modes=(PLAIN, CHECKPOINTED),
    contenders=contenders,
    default=("llava-256", "llava-576", "small-picture", "long-answers"),
)

if __name__ == "__main__":
    sys.exit(main(COMPARISON))
