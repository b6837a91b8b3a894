"""TRL 1.16's KTO trainer as judge of its unpaired APO loss: value and gradient, weights of both kinds of responses included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys.scored import example, feedback_of
from toys.trl_models import BETA, PAIRS, World, assert_same, scored

from polyalign.objectives.unpaired import APOZeroUnpaired
from polyalign.objectives.unpaired_config import APOZeroUnpairedConfig

pytest.importorskip("trl", reason="the oracle trl is not installed; see requirements-dev.txt")


@pytest.fixture(scope="module")
def trainer(world: World) -> Any:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": p["prompt"], "completion": p["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
        for i, p in enumerate(PAIRS)
    ]
    settings = {"loss_type": "apo_zero_unpaired", "beta": BETA, "desirable_weight": 0.8, "undesirable_weight": 1.4}
    return KTOTrainer(
        model=world.policy,
        ref_model=world.reference,
        args=world.settings(KTOConfig, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=world.tokenizer,
    )


def test_apo_zero_unpaired_equals_trl(world: World, trainer: Any):
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(PAIRS))])
    theirs = trainer.compute_loss(world.policy, batch)
    rows = [batch[name] for name in ("input_ids", "attention_mask", "completion_mask")]
    with torch.no_grad():
        frozen = scored(world.reference, *rows)
    labels = [1 if label else -1 for label in batch["label"]]
    assert {1, -1} == set(labels)
    objective = APOZeroUnpaired(APOZeroUnpairedConfig(beta=BETA, desirable_weight=0.8, undesirable_weight=1.4))
    feedback = feedback_of(example(len(PAIRS), labels=labels))
    term = objective(scored(world.policy, *rows), {"reference": frozen}, feedback)["preference"]
    assert_same(world.policy, term.sum / term.weight, theirs)
