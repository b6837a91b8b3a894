"""Scoring a group of rollouts, as GRPO does at every step: our policy against TRL's GRPOTrainer, on the same ids and weights.

    python3 tools/dev.py bench rollouts [--shape NAME ...] [--mode NAME ...] [--steps 10] [--json FILE] [--no-memory]

Eight completions per prompt are laid out and scored: log-probability and entropy of every completion token. The models are those
of `text_dpo` and `vlm_dpo`, with LoRA, float32, at temperature 1. TRL's part is its `_get_per_token_logps_and_entropies` on rows
made as its `_generate_and_score_completions` does (prompts padded on the left, a copy of the picture per completion).

- mode ``scoring``: without gradients, what old and reference log-probabilities take;
- mode ``training``: the policy pass, the gradient of an advantage-weighted sum over tokens, and AdamW;
- ``plain rows``: a row per completion; ``shared rows``: all completions of a prompt behind it, in one row; ``auto rows`` (the
  default of a policy): as many of them in one row as pay for the attention of a longer row.

``ceiling`` is the speed-up that counting multiplications would allow, see `flop_ceiling`.
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from against_trl import BASELINE, Comparison, Contender, main
from agreement import Outcome
from datasets import Dataset
from flop_ceiling import FORWARD, Passes, Work, attended, flops
from PIL import Image
from random_models import Shape, asked, model_and_processor, our_policy, peft_config, prompt_of, rendered, tokenizer_of_bytes
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import pad

from polyalign.policies.base import Batch, Rollout, Tokens
from polyalign.records.samples import Prompt
from polyalign.records.store import MemoryMedia

SCORING, TRAINING = "scoring", "training"
GROUP = 8


def lengths(longest: int) -> tuple[int, ...]:
    """Return the lengths of a group's completions: from half of the longest on."""
    return tuple(longest // 2 + longest * number // (2 * (GROUP - 1)) for number in range(GROUP))


SHAPES = {
    "prompt-512": Shape(prompts=(512, 512), answers=((40,) * GROUP,) * 2, tower_layers=0),
    "long-prompt": Shape(prompts=(500, 500), answers=(lengths(100),) * 2, tower_layers=0),
    "long-completions": Shape(prompts=(100, 100), answers=(lengths(300),) * 2, tower_layers=0),
    "picture": Shape(prompts=(60, 60), answers=(lengths(60),) * 2, picture=168),
    "tiny": Shape(prompts=(30, 34), answers=(lengths(12),) * 2, hidden=128, layers=2, tower_layers=0),
    "tiny-picture": Shape(
        prompts=(30, 34), answers=(lengths(12),) * 2, hidden=128, layers=2, picture=56, tower_hidden=64, tower_layers=2
    ),
}


class Scoring(Contender):
    """Both sides: the same completions and advantages, the same for every prompt, and one loss of the log-probabilities."""

    shares_prompts = False
    tower_passes = 0.0  # per prompt

    def __init__(self, shape: Shape, mode: str) -> None:
        self.shape, self.trains = shape, mode == TRAINING
        draw = random.Random(1)
        end = tokenizer_of_bytes().eos_token_id
        self.completions = [
            [[*(draw.randrange(256) for _ in range(length - 1)), end] for length in group] for group in shape.answers
        ]

    def log_probs_and_entropy(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return both for all completion tokens ``[tokens]``: prompt by prompt, completion by completion."""
        raise NotImplementedError

    def outcome(self, batch: Any) -> Outcome:
        with torch.set_grad_enabled(self.trains):
            log_probs, entropy = self.log_probs_and_entropy(batch)
            advantages = torch.linspace(-1, 1, GROUP).repeat_interleave(torch.tensor(self.shape.answers[0]))  # of each token
            loss = -(log_probs * advantages.repeat(self.shape.per_step)).mean()
        if self.trains:
            loss.backward()
        return {"loss": loss, "log_probs": log_probs, "entropy": entropy}

    def flops(self, step: int, tokens: int) -> float:
        shape, members = self.shape, self.shape.members(step)
        cells = sum(attended(shape.prompts[n] + shape.picture_tokens, shape.answers[n], self.shares_prompts) for n in members)
        scored = sum(sum(shape.answers[n]) for n in members)
        passes = Passes.training(checkpointing=False, reference=False) if self.trains else FORWARD
        return flops(shape, Work(tokens, cells, scored, self.tower_passes * len(members)), passes)


class Trl(Scoring):
    def __init__(self, shape: Shape, mode: str, folder: Path) -> None:
        super().__init__(shape, mode)
        self.tower_passes = float(GROUP) if shape.picture else 0.0
        model, self.processor = model_and_processor(shape)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        self.asked = asked(shape)
        config = GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_generations=GROUP,
            per_device_train_batch_size=GROUP * shape.per_step,
            max_completion_length=max(map(max, shape.answers)),
            report_to="none",
        )
        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0 for _ in completions],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": rendered(item, self.tokenizer)} for item in self.asked]),
            processing_class=self.processor,
            peft_config=peft_config(model),
        )
        self.model = self.trainer.model.train(self.trains)

    def collate(self, step: int) -> dict[str, Any]:
        items = [self.asked[number] for number in self.shape.members(step) for _ in range(GROUP)]
        texts = [rendered(item, self.tokenizer) for item in items]
        more: dict[str, Any] = {}
        if self.shape.picture:
            more["images"] = [[Image.open(io.BytesIO(item.picture or b""))] for item in items]
        inputs = dict(
            self.processor(text=texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False, **more)
        )
        answers = [torch.tensor(ids) for number in self.shape.members(step) for ids in self.completions[number]]
        completions = pad(answers, padding_value=self.tokenizer.pad_token_id, padding_side="right")
        mask = pad([torch.ones_like(ids) for ids in answers], padding_value=0, padding_side="right")
        batch = {
            "input_ids": torch.cat([inputs["input_ids"], completions], 1),
            "attention_mask": torch.cat([inputs["attention_mask"], mask], 1),
            "logits_to_keep": completions.shape[1],
            "completion_mask": mask,
        }
        if self.shape.picture:
            batch |= {"pixel_values": inputs["pixel_values"], "num_images": [1] * len(items)}
        return batch

    def log_probs_and_entropy(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        mask = batch["completion_mask"].bool()
        inputs = {name: value for name, value in batch.items() if name != "completion_mask"}
        found = self.trainer._get_per_token_logps_and_entropies(self.model, **inputs, compute_entropy=True)
        return found[0][mask], found[1][mask]

    def tokens(self, batch: dict[str, Any]) -> int:
        return int(batch["input_ids"].numel())


class Ours(Scoring):
    def __init__(self, shape: Shape, mode: str, rows: str) -> None:
        super().__init__(shape, mode)
        self.shares_prompts = rows != "plain"  # of "auto", the cells of prompts that are computed again are left out of the count
        self.pictures_allowed = int(bool(shape.picture))
        self.tower_passes = float(self.pictures_allowed)
        self.policy = our_policy(shape, rows).train(self.trains)
        self.model = self.policy.model
        media = MemoryMedia()
        longest = max(map(max, shape.answers))
        self.rollouts = [
            [
                Rollout(
                    prompt=Prompt.of(prompt_of(item, media), media),
                    output="",
                    decisions=(Tokens(torch.tensor(ids)),),
                    decoding={"max_new_tokens": longest, "temperature": 1.0},
                )
                for ids in group
            ]
            for item, group in zip(asked(shape), self.completions, strict=True)
        ]

    def collate(self, step: int) -> Batch:
        rollouts = [rollout for number in self.shape.members(step) for rollout in self.rollouts[number]]
        return self.policy.collator.of_rollouts(rollouts)

    def log_probs_and_entropy(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores = self.policy(batch, frozenset({"entropy"}))
        mask = scores.mask[:, 0]
        return scores.log_probs[:, 0][mask], scores.extras["entropy"][mask]

    def tokens(self, batch: Batch) -> int:
        return int(self.policy.rows(batch).tensors["input_ids"].numel())


def contenders(shape: Shape, mode: str, folder: Path) -> Mapping[str, Callable[[], Contender]]:
    return {
        BASELINE: lambda: Trl(shape, mode, folder),
        "plain rows": lambda: Ours(shape, mode, "plain"),
        "shared rows": lambda: Ours(shape, mode, "shared"),
        "auto rows": lambda: Ours(shape, mode, "auto"),
    }


COMPARISON = Comparison(
    name="rollouts",
    script=__file__,
    about=__doc__,
    shapes=SHAPES,
    modes=(SCORING, TRAINING),
    contenders=contenders,
    default=("prompt-512", "long-prompt", "long-completions", "picture"),
)

if __name__ == "__main__":
    sys.exit(main(COMPARISON))
