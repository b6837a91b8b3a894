"""Statistics of a step and objectives with state: when they are computed, when they are taken in, and what that costs."""

from __future__ import annotations

import pytest
import torch
from toys.gaussian import GaussianPolicy, pair_examples

from polyalign.objectives.base import Objective
from polyalign.objectives.bco import BCO
from polyalign.objectives.config import AOTUnpairedConfig, BCOPairConfig, DPOConfig
from polyalign.objectives.optimal_transport import AOT
from polyalign.objectives.pairwise import DPO
from polyalign.policies.reference import FrozenCopy
from polyalign.training.batches import MicroBatch, collate_examples
from polyalign.training.window import NonFiniteLoss, WindowLoss


class Counting(GaussianPolicy):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, batch, want=frozenset()):
        self.calls += 1
        return super().forward(batch, want)


def micro_batches(policy: GaussianPolicy, size: int, count: int = 4) -> list[MicroBatch]:
    examples = pair_examples(count)
    return [collate_examples(examples[start : start + size], policy.collator) for start in range(0, count, size)]


def window(objective: Objective) -> tuple[Counting, WindowLoss]:
    """A policy that has moved away from its reference, so that rewards are not zero."""
    policy = Counting()
    reference = FrozenCopy(GaussianPolicy(seed=1))
    return policy, WindowLoss(policy, reference, objective, "cpu")


def backward(loss: torch.Tensor, last: bool) -> None:
    loss.backward()


@pytest.mark.parametrize("objective", [BCO(BCOPairConfig(beta=0.5)), AOT(AOTUnpairedConfig(beta=0.5))])
def test_a_step_in_one_piece_is_scored_once_and_a_split_one_twice(objective: Objective) -> None:
    policy, loss = window(objective)
    loss.train(micro_batches(policy, 4), backward)
    assert policy.calls == 1
    policy.calls = 0
    loss.train(micro_batches(policy, 2), backward)
    assert policy.calls == 4


@pytest.mark.parametrize("objective", [DPO(DPOConfig(beta=0.5)), BCO(BCOPairConfig(beta=0.5, baseline="none"))])
def test_objectives_that_need_no_statistics_never_score_twice(objective: Objective) -> None:
    policy, loss = window(objective)
    loss.train(micro_batches(policy, 1), backward)
    assert policy.calls == 4


@pytest.mark.parametrize("size", [1, 4])
def test_an_objective_takes_each_trained_step_in_once_and_held_out_data_never(size: int) -> None:
    objective = BCO(BCOPairConfig(beta=0.5))
    policy, loss = window(objective)
    loss.evaluate(micro_batches(policy, size))
    assert objective.windows.item() == 0
    loss.train(micro_batches(policy, size), backward)
    baseline = objective.baseline.item()
    assert objective.windows.item() == 1 and baseline != 0.0
    loss.evaluate(micro_batches(policy, size))
    assert (objective.windows.item(), objective.baseline.item()) == (1, baseline)


def test_a_step_whose_loss_is_not_finite_is_not_taken_in() -> None:
    class Exploding(Counting):
        def forward(self, batch, want=frozenset()):
            scores = super().forward(batch, want)
            scores.log_probs = scores.log_probs * float("nan")
            return scores

    objective = BCO(BCOPairConfig(beta=0.5))
    policy = Exploding()
    loss = WindowLoss(policy, FrozenCopy(GaussianPolicy(seed=1)), objective, "cpu")
    with pytest.raises(NonFiniteLoss):
        loss.train(micro_batches(policy, 2), backward)
    assert (objective.windows.item(), objective.baseline.item()) == (0, 0.0)


@pytest.mark.parametrize("objective", [DPO(DPOConfig(beta=0.5)), AOT(AOTUnpairedConfig(beta=0.5))])
def test_held_out_loss_does_not_depend_on_the_split(objective: Objective) -> None:
    policy, loss = window(objective)
    whole = loss.evaluate(micro_batches(policy, 4))["loss"]
    assert loss.evaluate(micro_batches(policy, 1))["loss"] == pytest.approx(whole, abs=1e-6)
