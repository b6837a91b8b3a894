"""TRL's trainers on tiny random Llamas, and our objectives on the same token ids: what the oracle tests share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from polyalign.objectives.base import Objective
from polyalign.policies.base import Kind, Scores
from polyalign.records.samples import Edge
from toys.scored import example, feedback_of

WORDS = "a b c d e f g h i j k l m n o p".split()
PAIRS = [
    {"prompt": "a b c", "chosen": " d e f", "rejected": " g h"},
    {"prompt": "b", "chosen": " i", "rejected": " j k l m"},
    {"prompt": "c a f e", "chosen": " n o p a b", "rejected": " o"},
    {"prompt": "p o", "chosen": " d d", "rejected": " e e e"},
]
BETA, SMOOTHING = 0.4, 0.2


@dataclass
class World:
    """Two unlike random models, a tokenizer, and where trainers may write."""

    policy: Any
    reference: Any
    tokenizer: Any
    folder: Any

    def settings(self, config: Any, **options: Any) -> Any:
        return config(
            output_dir=str(self.folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            per_device_train_batch_size=len(PAIRS),
            **options,
        )


def scored(model: Any, ids: torch.Tensor, attention: torch.Tensor, completion: torch.Tensor) -> Scores:
    """Score completion tokens by a plain forward pass."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return Scores(log_probs[:, None], completion[:, None, 1:].bool(), torch.full(log_probs.shape, int(Kind.TOKEN)))


def ours(objective: Objective, world: World, batch: dict[str, torch.Tensor], feedback: Any) -> torch.Tensor:
    rows = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    with torch.no_grad():
        reference = scored(world.reference, *rows)
    terms = objective(scored(world.policy, *rows), {"reference": reference}, feedback)
    return sum(term.sum / term.weight for term in terms.values())


def pair_feedback() -> Any:
    return feedback_of(example(2 * len(PAIRS), [Edge(i, len(PAIRS) + i) for i in range(len(PAIRS))]))


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()))


def assert_same(model: Any, mine: torch.Tensor, theirs: torch.Tensor) -> None:
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    one, other = gradients(model, mine), gradients(model, theirs)
    largest = max(1.0, *(part.abs().max().item() for part in other))  # float32: errors are relative to the largest entry
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5 * largest, rtol=0)


def trl_dpo(
    trainer: Any,
    batch: dict[str, torch.Tensor],
    loss: str | dict[str, float],
    smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    coefficient: float = 0.5,
) -> torch.Tensor:
    """TRL's loss of the batch; ``loss`` is one of its loss types or several with their weights."""
    mixture = {loss: 1.0} if isinstance(loss, str) else loss
    trainer.loss_types, trainer.loss_weights = list(mixture), list(mixture.values())
    trainer.beta, trainer.label_smoothing = BETA, smoothing
    trainer.f_divergence_type, trainer.f_alpha_divergence_coef = divergence, coefficient
    return trainer.compute_loss(trainer.model, dict(batch))


def as_pairs(trainer: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The batch of the CPO and ORPO trainers, and the same rows as ours: chosen, then rejected."""
    theirs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(PAIRS))])
    both = trainer.concatenated_inputs(theirs, padding_value=0)
    rows = {
        "input_ids": both["concatenated_input_ids"].clamp(min=0),
        "attention_mask": both["concatenated_attention_mask"],
        "completion_mask": both["concatenated_labels"] != -100,
    }
    return theirs, rows
