"""TRL 1.16's own trainers as judges: values to 1e-5 and gradients on every weight of a tiny random Llama.

TRL computes a loss from its collated batch; we score the same token ids with a plain forward pass and call our objective.
Where definitions differ the test states the difference and checks it. The pairwise losses are in `test_trl_pairwise.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys.scored import example, feedback_of
from toys.trl_models import BETA, PAIRS, SMOOTHING, World, as_pairs, assert_same, ours, pair_feedback, scored, trl_dpo

from polyalign.objectives.config import DPOConfig, IPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from polyalign.objectives.kto import KTO
from polyalign.objectives.odds_ratio import ORPO
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.reference_free import SimPO
from polyalign.objectives.supervised import SFT
from polyalign.policies.base import Scores

pytest.importorskip("trl", reason="the oracle trl is not installed; see requirements-dev.txt")


def test_trl_ignores_label_smoothing_of_the_sigmoid_loss_and_we_do_not(world, dpo_trainer, pairs):
    theirs = trl_dpo(dpo_trainer, pairs, "sigmoid", SMOOTHING)
    plain = ours(DPO(DPOConfig(beta=BETA)), world, pairs, pair_feedback())
    smoothed = ours(DPO(DPOConfig(beta=BETA, label_smoothing=SMOOTHING)), world, pairs, pair_feedback())
    assert theirs.item() == pytest.approx(plain.item(), abs=1e-5)
    assert abs(smoothed.item() - plain.item()) > 1e-3


def test_sft_equals_trl_on_the_chosen_responses(world, dpo_trainer, pairs):
    theirs = trl_dpo(dpo_trainer, pairs, "sft")
    chosen = {name: value[: len(PAIRS)] for name, value in pairs.items()}
    assert_same(world.policy, ours(SFT(), world, chosen, feedback_of(example(len(PAIRS)))), theirs)


def test_simpo_equals_trl(world, cpo_trainer):
    batch, rows = as_pairs(cpo_trainer)
    theirs = cpo_trainer.compute_loss(world.policy, batch)
    assert_same(world.policy, ours(SimPO(SimPOConfig(beta=BETA, gamma=0.3)), world, rows, pair_feedback()), theirs)


@pytest.mark.parametrize(
    ("loss", "smoothing", "config"),
    [
        ("sigmoid", SMOOTHING, DPOConfig(beta=BETA, label_smoothing=SMOOTHING)),
        ("ipo", 0.0, IPOConfig(beta=BETA, reduction="sum")),
    ],
)
def test_losses_that_trl_keeps_only_in_cpo_equal_it_on_log_ratios(
    world, cpo_trainer, pairs, monkeypatch, loss: str, smoothing: float, config: DPOConfig
):
    """cDPO and IPO on sums: TRL's CPO loss, fed with log-ratios in place of log-probabilities, is the same formula."""
    monkeypatch.setattr(cpo_trainer, "loss_type", loss)
    monkeypatch.setattr(cpo_trainer, "label_smoothing", smoothing)
    rows = pairs["input_ids"], pairs["attention_mask"], pairs["completion_mask"]
    with torch.no_grad():
        reference = scored(world.reference, *rows).reduced()[:, 0]
    ratios = scored(world.policy, *rows).reduced()[:, 0] - reference
    theirs = cpo_trainer.cpo_loss(*ratios.chunk(2))[0].mean()
    assert_same(world.policy, ours(DPO(config), world, pairs, pair_feedback()), theirs)


@pytest.fixture(scope="module")
def orpo_trainer(world: World) -> Any:
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig as TrlConfig
    from trl.experimental.orpo import ORPOTrainer

    return ORPOTrainer(
        model=world.policy,
        args=world.settings(TrlConfig, beta=BETA, max_length=64),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=world.tokenizer,
    )


def test_odds_ratio_term_equals_trl(world, orpo_trainer):
    batch, rows = as_pairs(orpo_trainer)
    chosen, rejected = orpo_trainer.concatenated_forward(world.policy, batch)[:2]
    theirs = -orpo_trainer.odds_ratio_loss(chosen, rejected)[0].mean()
    scores = scored(world.policy, rows["input_ids"], rows["attention_mask"], rows["completion_mask"])
    term = ORPO(ORPOConfig(odds_weight=BETA))(scores, {}, pair_feedback())["odds_ratio"]
    assert_same(world.policy, term.sum / term.weight, theirs)


def test_orpo_differs_from_trl_by_the_prompt_in_the_first_term(world, orpo_trainer):
    """TRL: cross-entropy over prompt and response. Ours: over the response. Nothing else differs."""
    batch, rows = as_pairs(orpo_trainer)
    theirs, _ = orpo_trainer.get_batch_loss_metrics(world.policy, batch)
    mine = ours(ORPO(ORPOConfig(odds_weight=BETA)), world, rows, pair_feedback())
    half = slice(0, len(PAIRS))
    ids, attention = rows["input_ids"][half], rows["attention_mask"][half]
    logits = world.policy(input_ids=ids, attention_mask=attention).logits[:, :-1].transpose(1, 2)

    def cross_entropy(counted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, ids[:, 1:].masked_fill(~counted[:, 1:].bool(), -100))

    difference = cross_entropy(attention) - cross_entropy(rows["completion_mask"][half])
    assert abs(difference.item()) > 1e-3
    assert_same(world.policy, mine + difference, theirs)


@pytest.fixture(scope="module")
def kto_trainer(world: World) -> Any:
    from datasets import Dataset
    from trl import KTOConfig as TrlConfig
    from trl import KTOTrainer

    rows = [
        {"prompt": p["prompt"], "completion": p["chosen" if i % 2 else "rejected"], "label": bool(i)} for i, p in enumerate(PAIRS)
    ]
    return KTOTrainer(
        model=world.policy,
        ref_model=world.reference,
        args=world.settings(TrlConfig, beta=BETA, desirable_weight=1.0, undesirable_weight=1.4),
        train_dataset=Dataset.from_list(rows),
        processing_class=world.tokenizer,
    )


@pytest.fixture(params=[False, True], ids=["as is", "policy and reference swapped"])
def exchanged(world: World, request):
    """Exchange the weights of the two models for one test (TRL fits each model's head for its role, so not the models)."""
    if request.param:
        _exchange(world)
    yield
    if request.param:
        _exchange(world)


@torch.no_grad()
def _exchange(world: World) -> None:
    for one, other in zip(world.policy.parameters(), world.reference.parameters(), strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def test_kto_equals_trl(world, kto_trainer, exchanged):
    """Three desirable, one undesirable. Exchanging the models negates z0's mean, so one of the two cases is the clamped one."""
    batch = kto_trainer.data_collator([kto_trainer.train_dataset[i] for i in range(len(PAIRS))])
    theirs = kto_trainer.compute_loss(world.policy, batch)

    def both(model: Any) -> Scores:
        """The completions, then the mismatched ones, as one batch."""
        parts = [
            scored(model, *(batch[f"{p}{n}"] for n in ("input_ids", "attention_mask", "completion_mask"))) for p in ("", "KL_")
        ]
        longest = max(part.kind.shape[1] for part in parts)
        pad: Callable[[torch.Tensor], torch.Tensor] = lambda x: F.pad(x, (0, longest - x.shape[-1]))  # noqa: E731
        return Scores(*(torch.cat([pad(getattr(part, n)) for part in parts]) for n in ("log_probs", "mask", "kind")))

    count = len(PAIRS)
    labels = [1 if label else -1 for label in batch["label"]] + [0] * count
    feedback = feedback_of(example(2 * count, labels=labels, mismatched=range(count, 2 * count)))
    with torch.no_grad():
        frozen = both(world.reference)
    scores = both(world.policy)
    objective = KTO(KTOConfig(beta=BETA, undesirable_weight=1.4, kl="mismatch"))
    term = objective(scores, {"reference": frozen}, feedback)["preference"]
    assert_same(world.policy, term.sum / term.weight, theirs)

    means = [(s.reduced() - f.reduced())[count:].mean().item() for s, f in ((scores, frozen), (frozen, scores))]
    assert means[0] == pytest.approx(-means[1], abs=1e-5) and abs(means[0]) > 0.1
