"""TRL 1.16 as judge of weighted and length-desensitised DPO: values to 1e-5, gradients to 1e-5 of the largest entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toys.trl_models import BETA, PAIRS, SMOOTHING, assert_same, ours, pair_feedback, scored, trl_dpo

from polyalign.objectives.pairwise import DPO
from polyalign.objectives.refinements import LDDPO, WPO
from polyalign.objectives.refinements_config import LDDPOConfig, WPOConfig

pytest.importorskip("trl", reason="the oracle trl is not installed; see requirements-dev.txt")


@pytest.fixture(scope="module")
def weighting_trainer(world) -> Any:
    """A trainer whose head also reduces the vocabulary to the log of the sum of squared probabilities."""
    from datasets import Dataset
    from trl import DPOConfig as TrlConfig
    from trl import DPOTrainer

    return DPOTrainer(
        model=world.policy,
        ref_model=world.reference,
        args=world.settings(TrlConfig, use_weighting=True),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=world.tokenizer,
    )


def wpo_loss(world, batch: dict[str, torch.Tensor], config: WPOConfig) -> torch.Tensor:
    """Our loss, the vocabulary's squared probabilities summed one by one."""
    rows = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    with torch.no_grad():
        reference = scored(world.reference, *rows)
        logits = world.policy(input_ids=rows[0], attention_mask=rows[1]).logits[:, :-1].double()
        squares = logits.softmax(-1).square().sum(-1).log().float()
    scores = replace(scored(world.policy, *rows), extras={"log_sum_squares": squares})
    (term,) = WPO(config)(scores, {"reference": reference}, pair_feedback()).values()
    return term.sum / term.weight


@pytest.mark.parametrize("divergence", ["reverse_kl", "js_divergence"])
def test_wpo_equals_trl(world, weighting_trainer, divergence: str):
    batch = weighting_trainer.data_collator([weighting_trainer.train_dataset[i] for i in range(len(PAIRS))])
    theirs = trl_dpo(weighting_trainer, batch, "sigmoid", divergence=divergence)
    mine = wpo_loss(world, batch, WPOConfig(beta=BETA, divergence=divergence.removesuffix("_divergence")))
    assert_same(world.policy, mine, theirs)
    unaligned = wpo_loss(world, batch, WPOConfig(beta=BETA, divergence=divergence.removesuffix("_divergence"), alignment="none"))
    assert abs(mine.item() - unaligned.item()) > 1e-3


@pytest.mark.parametrize("ld_alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("divergence", ["reverse_kl", "js_divergence"])
def test_ld_dpo_equals_trl_which_scales_the_reference_too(
    world, dpo_trainer, pairs, monkeypatch, ld_alpha: float, divergence: str
):
    monkeypatch.setattr(dpo_trainer, "ld_alpha", ld_alpha)
    theirs = trl_dpo(dpo_trainer, pairs, "sigmoid", divergence=divergence)
    config = LDDPOConfig(beta=BETA, ld_alpha=ld_alpha, divergence=divergence.removesuffix("_divergence"))
    mine = ours(LDDPO(config), world, pairs, pair_feedback())
    assert_same(world.policy, mine, theirs)
    plain = ours(DPO(config), world, pairs, pair_feedback())
    assert (abs(mine.item() - plain.item()) > 1e-3) == (ld_alpha != 1.0)


def test_length_normalised_ld_dpo_equals_trl_which_divides_by_the_whole_length(world, dpo_trainer, pairs, monkeypatch):
    monkeypatch.setattr(dpo_trainer, "ld_alpha", 0.3)
    theirs = trl_dpo(dpo_trainer, pairs, "sigmoid_norm")
    config = LDDPOConfig(beta=BETA, ld_alpha=0.3, reduction="mean")
    assert_same(world.policy, ours(LDDPO(config), world, pairs, pair_feedback()), theirs)


def test_smoothing_goes_on_top_of_both(world, pairs):
    """TRL smooths `robust` and `exo_pair` only; by our own formula the smoothed loss is (1 - e) * L(z) + e * L(-z)."""
    plain, flipped = (
        ours(LDDPO(LDDPOConfig(beta=BETA, ld_alpha=0.3)), world, pairs, feedback) for feedback in (pair_feedback(), _flipped())
    )
    mine = ours(LDDPO(LDDPOConfig(beta=BETA, ld_alpha=0.3, label_smoothing=SMOOTHING)), world, pairs, pair_feedback())
    assert mine.item() == pytest.approx(((1 - SMOOTHING) * plain + SMOOTHING * flipped).item(), abs=1e-6)


def _flipped() -> Any:
    feedback = pair_feedback()
    feedback.edges = replace(feedback.edges, better=feedback.edges.worse, worse=feedback.edges.better)
    return feedback
