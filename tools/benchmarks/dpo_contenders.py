"""One step of DPO with LoRA, beta 0.1, against the adapters switched off: by TRL's own trainer, and by ours."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from against_trl import BASELINE, Contender
from agreement import Outcome
from datasets import Dataset, Features, Image, Value
from flop_ceiling import Passes, Work, attended, flops
from PIL import Image as Pictures
from random_models import Shape, asked, model_and_processor, our_policy, pairs, peft_config, rendered
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from polyalign.objectives.config import DPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.policies.reference import AdaptersOff, CachedScores
from polyalign.training.batches import MicroBatch, collate_examples
from polyalign.training.window import WindowLoss

BETA = 0.1
PLAIN, CHECKPOINTED = "no checkpointing", "gradient checkpointing"


class DpoStep(Contender):
    """What both sides' steps have in common: how they are counted."""

    shares_prompts = cached_reference = False
    tower_passes = 0.0  # per prompt, in forward passes

    def __init__(self, shape: Shape, mode: str) -> None:
        self.shape, self.checkpointed = shape, mode == CHECKPOINTED

    def flops(self, step: int, tokens: int) -> float:
        shape, members = self.shape, self.shape.members(step)
        cells = sum(attended(shape.prompts[n] + shape.picture_tokens, shape.answers[n], self.shares_prompts) for n in members)
        scored = sum(sum(shape.answers[n]) for n in members)
        work = Work(tokens, cells, scored, self.tower_passes * len(members))
        return flops(shape, work, Passes.training(self.checkpointed, not self.cached_reference))


class Trl(DpoStep):
    """`DPOTrainer.training_step` on what its data collator makes of its data set."""

    def __init__(self, shape: Shape, mode: str, folder: Path, *, precomputed: bool = False) -> None:
        super().__init__(shape, mode)
        self.cached_reference = precomputed
        self.tower_passes = (8.0 if self.checkpointed else 4.0) if shape.picture else 0.0
        model, processor = model_and_processor(shape)
        config = TrlConfig(
            output_dir=str(folder / "trl"),
            beta=BETA,
            max_length=None,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=self.checkpointed,
            precompute_ref_log_probs=precomputed,
            per_device_train_batch_size=shape.per_step,
            report_to="none",
        )
        self.trainer = DPOTrainer(
            model=model,
            args=config,
            train_dataset=_trl_data(shape, getattr(processor, "tokenizer", processor)),
            processing_class=processor,
            peft_config=peft_config(model),
        )
        self.trainer.current_gradient_accumulation_steps = 1
        self.model = self.trainer.model
        if self.checkpointed:  # as `Trainer` does when training starts
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=config.gradient_checkpointing_kwargs)

    def collate(self, step: int) -> Any:
        return self.trainer.data_collator([self.trainer.train_dataset[number] for number in self.shape.members(step)])

    def outcome(self, batch: Any) -> Outcome:
        return {"loss": self.trainer.training_step(self.model, dict(batch))}

    def tokens(self, batch: Any) -> int:
        return int(batch["input_ids"].numel())


def _trl_data(shape: Shape, tokenizer: Any) -> Dataset:
    rows = []
    for item in asked(shape):
        chosen, rejected = (answer + tokenizer.eos_token for answer in item.answers)
        row: dict[str, Any] = {"prompt": rendered(item, tokenizer), "chosen": chosen, "rejected": rejected}
        if item.picture:
            row["images"] = [Pictures.open(io.BytesIO(item.picture))]
        rows.append(row)
    texts = {name: Value("string") for name in ("prompt", "chosen", "rejected")}
    return Dataset.from_list(rows, features=Features(texts | ({"images": [Image()]} if shape.picture else {})))


class Ours(DpoStep):
    """`WindowLoss.train`, as the trainer calls it, on what the policy's collator makes of its records."""

    def __init__(self, shape: Shape, mode: str, folder: Path, rows: str, *, scores: bool = False, features: bool = False) -> None:
        super().__init__(shape, mode)
        self.shares_prompts, self.cached_reference = rows != "plain", scores
        self.pictures_allowed = (0 if features else 1) if shape.picture else 0
        self.tower_passes = float(self.pictures_allowed)
        self.examples = pairs(shape)
        self.policy = our_policy(shape, rows, **({"cache_features": True} if features else {}))
        self.model = self.policy.model
        if self.checkpointed:
            self.policy.enable_gradient_checkpointing()
        self.policy.train()
        reference: Any = AdaptersOff(self.policy)
        if features:
            self.policy.prepare([sample for example in self.examples for sample in example.samples], folder)
        if scores:
            reference = CachedScores(reference, folder / "reference", self.policy.fingerprint())
            for step in range(shape.steps):
                reference(self.collate(step).batch)
            reference.inner = None  # from here on a missing score is an error, not a silent forward pass
        self.loss = WindowLoss(self.policy, reference, DPO(DPOConfig(beta=BETA)), "cpu")

    def collate(self, step: int) -> MicroBatch:
        return collate_examples([self.examples[number] for number in self.shape.members(step)], self.policy.collator)

    def outcome(self, batch: MicroBatch) -> Outcome:
        return {"loss": torch.tensor(self.loss.train([batch], lambda loss, last: loss.backward())["loss"])}

    def tokens(self, batch: MicroBatch) -> int:
        return int(self.policy.rows(batch.batch).tensors["input_ids"].numel())


def contenders(shape: Shape, mode: str, folder: Path) -> Mapping[str, Callable[[], Contender]]:
    """Return how to build each contender; what fits text alone or pictures alone is left out for the other."""
    made: dict[str, Callable[[], Contender]] = {BASELINE: lambda: Trl(shape, mode, folder)}
    if not shape.picture:
        made["TRL, precomputed reference"] = lambda: Trl(shape, mode, folder / "precomputed", precomputed=True)
    made["plain rows"] = lambda: Ours(shape, mode, folder, "plain")
    made["shared rows"] = lambda: Ours(shape, mode, folder, "shared")
    if shape.per_step > 1:
        made["packed rows"] = lambda: Ours(shape, mode, folder, "packed")
    made["shared, cached reference"] = lambda: Ours(shape, mode, folder, "shared", scores=True)
    if shape.picture:
        made["shared, cached reference and features"] = lambda: Ours(shape, mode, folder, "shared", scores=True, features=True)
    return made
