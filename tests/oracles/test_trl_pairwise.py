"""TRL 1.16's DPO and CPO trainers as judges of the pairwise losses: values to 1e-5, gradients to 1e-5 of the largest entry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toys.scored import example, feedback_of
from toys.trl_models import BETA, PAIRS, SMOOTHING, as_pairs, assert_same, ours, pair_feedback, scored, trl_dpo

from polyalign.objectives.base import Objective, averaged
from polyalign.objectives.bco import BCO
from polyalign.objectives.config import (
    AlphaPOConfig,
    AOTConfig,
    AOTUnpairedConfig,
    APODownConfig,
    APOZeroConfig,
    BCOPairConfig,
    CPOConfig,
    DiscoPOPConfig,
    DPOConfig,
    EXOPairConfig,
    HingeConfig,
    IPOConfig,
    MarginConfig,
    NCAPairConfig,
    RobustConfig,
    SigmoidNormConfig,
    SPPOHardConfig,
)
from polyalign.objectives.optimal_transport import AOT
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.reference_free import CPO, SimPO
from polyalign.objectives.terms import MPOConfig
from polyalign.objectives.weighted_sum import WeightedSum
from polyalign.policies.base import Scores
from polyalign.records.samples import Edge

pytest.importorskip("trl", reason="the oracle trl is not installed; see requirements-dev.txt")

SMOOTH = {"beta": BETA, "label_smoothing": SMOOTHING}
LOSSES: dict[str, tuple[float, Objective]] = {
    "sigmoid": (0.0, DPO(DPOConfig(beta=BETA))),
    "sigmoid_norm": (0.0, DPO(SigmoidNormConfig(beta=BETA))),
    "hinge": (0.0, DPO(HingeConfig(beta=BETA))),
    "ipo": (0.0, DPO(IPOConfig(beta=BETA))),
    "robust": (SMOOTHING, DPO(RobustConfig(**SMOOTH))),
    "exo_pair": (SMOOTHING, DPO(EXOPairConfig(**SMOOTH))),
    "nca_pair": (0.0, DPO(NCAPairConfig(beta=BETA))),
    "bco_pair": (0.0, BCO(BCOPairConfig(beta=BETA, baseline="none"))),
    "sppo_hard": (0.0, DPO(SPPOHardConfig(beta=BETA))),
    "aot": (SMOOTHING, AOT(AOTConfig(**SMOOTH))),
    "aot_unpaired": (SMOOTHING, AOT(AOTUnpairedConfig(**SMOOTH))),
    "apo_zero": (0.0, DPO(APOZeroConfig(beta=BETA))),
    "apo_down": (0.0, DPO(APODownConfig(beta=BETA))),
    "discopop": (0.0, DPO(DiscoPOPConfig(beta=BETA, tau=0.05))),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_equal_trl(world, dpo_trainer, pairs, loss: str):
    smoothing, objective = LOSSES[loss]
    theirs = trl_dpo(dpo_trainer, pairs, loss, smoothing)
    assert_same(world.policy, ours(objective, world, pairs, pair_feedback()), theirs)


def crossed(pairs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same chosen responses against rejected ones in another order, so that sorting is not the order of the pairs."""
    halves = {name: value.chunk(2) for name, value in pairs.items()}
    return {name: torch.cat([chosen, rejected.roll(1, 0)]) for name, (chosen, rejected) in halves.items()}


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_aot_equals_trl_where_ranks_cross(world, dpo_trainer, pairs, loss: str):
    smoothing, objective = LOSSES[loss]
    batch = crossed(pairs)
    mine = ours(objective, world, batch, pair_feedback())
    assert_same(world.policy, mine, trl_dpo(dpo_trainer, batch, loss, smoothing))
    dpo = ours(DPO(DPOConfig(**SMOOTH)), world, batch, pair_feedback())
    assert abs(mine.item() - dpo.item()) > 1e-3


ALPHA = 0.3
LINKS: dict[str, type[MarginConfig]] = {
    "sigmoid": DPOConfig,
    "sigmoid_norm": SigmoidNormConfig,
    "hinge": HingeConfig,
    "ipo": IPOConfig,
    "exo_pair": EXOPairConfig,
    "robust": RobustConfig,
    "discopop": DiscoPOPConfig,
}


DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}
COMBINED = [(loss, name) for name in DIVERGENCES for loss in LINKS if (loss, name) != ("discopop", "forward_kl")]


@pytest.mark.parametrize(("loss", "name"), COMBINED)
def test_divergences_equal_trl_with_every_link(world, dpo_trainer, pairs, loss: str, name: str):
    """Its alpha is one minus the paper's, which is ours; the divergence acts on the sum, lengths divide afterwards."""
    smoothing = {"label_smoothing": SMOOTHING} if loss in ("exo_pair", "robust") else {}
    config = LINKS[loss](beta=BETA, divergence=DIVERGENCES[name], alpha=ALPHA, **smoothing)
    expected = trl_dpo(dpo_trainer, pairs, loss, smoothing.get("label_smoothing", 0.0), name, 1 - ALPHA)
    assert_same(world.policy, ours(DPO(config), world, pairs, pair_feedback()), expected)


def test_discopop_of_trl_is_not_a_number_where_a_scaled_margin_is_below_minus_88(world, dpo_trainer, pairs):
    """It multiplies exp(-z), infinite in float32, by a sigmoid that is 0. Ours is the logistic loss there."""
    theirs = trl_dpo(dpo_trainer, pairs, "discopop", divergence="forward_kl")
    config = {"beta": BETA, "divergence": "forward_kl"}
    mine = ours(DPO(DiscoPOPConfig(**config)), world, pairs, pair_feedback())
    assert theirs.isnan()
    assert mine.item() == pytest.approx(ours(DPO(DPOConfig(**config)), world, pairs, pair_feedback()).item(), rel=1e-3)


def test_mpo_without_a_baseline_equals_trl(world, dpo_trainer, pairs):
    """TRL: loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]. Its bco_pair has no running baseline."""
    theirs = trl_dpo(dpo_trainer, pairs, {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0})
    terms = [
        {"name": "dpo", "weight": 0.8, "beta": BETA},
        {"name": "bco_pair", "weight": 0.2, "beta": BETA, "baseline": "none"},
        {"name": "sft"},
    ]
    assert_same(world.policy, ours(WeightedSum(MPOConfig(terms=terms)), world, pairs, pair_feedback()), theirs)


def both_scores(world, batch: dict[str, torch.Tensor]) -> tuple[Scores, Scores]:
    rows = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    with torch.no_grad():
        reference = scored(world.reference, *rows)
    return scored(world.policy, *rows), reference


def test_bco_differs_from_trl_by_its_baseline(world, dpo_trainer, pairs):
    """Ours by default subtracts the running mean of rewards, as ms-swift does: on a first batch, that batch's own mean."""
    theirs = trl_dpo(dpo_trainer, pairs, "bco_pair")
    scores, reference = both_scores(world, pairs)
    rewards = BETA * (scores.reduced() - reference.reduced())[:, 0]
    better, worse = (rewards - rewards.mean().detach()).chunk(2)
    shifted = (-F.logsigmoid(better) - F.logsigmoid(-worse)).mean()
    mine = ours(BCO(BCOPairConfig(beta=BETA)), world, pairs, pair_feedback())
    assert abs(mine.item() - theirs.item()) > 1e-3
    assert_same(world.policy, mine, shifted)


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_aot_of_a_split_step_differs_from_trl_which_sorts_each_micro_batch(world, dpo_trainer, pairs, loss: str):
    """TRL's mean over two micro-batches is not its loss of the whole; ours, from the same two parts, is."""
    smoothing, objective = LOSSES[loss]
    count, halves = len(PAIRS) // 2, []
    batch = crossed(pairs)
    for half in ([0, 1], [2, 3]):
        halves.append({name: torch.cat([part[half] for part in value.chunk(2)]) for name, value in batch.items()})
    whole = trl_dpo(dpo_trainer, batch, loss, smoothing)
    split = sum(trl_dpo(dpo_trainer, half, loss, smoothing) for half in halves) / 2
    assert abs(split.item() - whole.item()) > 1e-3

    feedback = feedback_of(example(2 * count, [Edge(i, count + i) for i in range(count)]))
    parts = [both_scores(world, half) for half in halves]
    rows = torch.cat([objective.statistics(s, {"reference": r}, feedback)["values"] for s, r in parts])
    terms = [objective(s, {"reference": r}, feedback, averaged({"values": rows}))["preference"] for s, r in parts]
    assert_same(world.policy, sum(term.sum for term in terms) / sum(term.weight for term in terms), whole)


@pytest.fixture
def as_loss(cpo_trainer, monkeypatch):
    """Give the CPO trainer another loss for one test."""

    def use(**settings: object) -> None:
        for name, value in settings.items():
            monkeypatch.setattr(cpo_trainer, name, value)

    return use


def test_cpo_equals_trl(world, cpo_trainer, as_loss):
    as_loss(loss_type="sigmoid", cpo_alpha=0.7)
    batch, rows = as_pairs(cpo_trainer)
    theirs = cpo_trainer.compute_loss(world.policy, batch)
    assert_same(world.policy, ours(CPO(CPOConfig(beta=BETA, nll_weight=0.7)), world, rows, pair_feedback()), theirs)


@pytest.mark.parametrize("alpha", [0.25, -0.3])
def test_alphapo_equals_trl(world, cpo_trainer, as_loss, alpha: float):
    as_loss(alpha=alpha)
    batch, rows = as_pairs(cpo_trainer)
    theirs = cpo_trainer.compute_loss(world.policy, batch)
    mine = ours(SimPO(AlphaPOConfig(beta=BETA, gamma=0.3, alpha=alpha)), world, rows, pair_feedback())
    assert_same(world.policy, mine, theirs)
