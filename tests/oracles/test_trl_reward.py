"""Bradley-Terry with margins and centring against TRL's RewardTrainer."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from toys.features import attached, compared, features_of, randomised
from toys.scored import feedback_of, loss_of
from trl import RewardTrainer

from polyalign.objectives.reward_modeling.bradley_terry import BradleyTerry
from polyalign.objectives.reward_modeling_config import BradleyTerryConfig
from polyalign.records.samples import Edge

WIDTH = 5


def hidden(count: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pairs(count: int, margins: bool) -> list:
    return [compared(2, [Edge(0, 1, margin=0.3 * n if margins else 0.0)], f"r{n}") for n in range(count)]


@pytest.mark.parametrize("margins", [False, True])
def test_loss_and_gradient_are_those_of_trls_reward_trainer(margins: bool):
    """TRL 1.16's `RewardTrainer.compute_loss` on a stub model that returns our rewards."""
    model = randomised(attached(BradleyTerry(BradleyTerryConfig(centring=0.01)), WIDTH))
    states = hidden(8)
    feedback = feedback_of(*pairs(4, margins))
    ours = loss_of(model, features_of(states), None, feedback)
    ours.backward()
    gradient = model.head[-1].weight.grad.clone()
    model.zero_grad()

    order = [0, 2, 4, 6, 1, 3, 5, 7]  # TRL stacks the chosen ones, then the rejected ones
    rewards = model.head(states[order])
    stub = SimpleNamespace(
        args=SimpleNamespace(center_rewards_coefficient=0.01),
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {"input_ids": torch.zeros(8, 1), "attention_mask": torch.ones(8, 1)}
    if margins:
        inputs["margin"] = feedback.edges.margin.double()
    theirs = RewardTrainer.compute_loss(stub, lambda **_: SimpleNamespace(logits=rewards), inputs)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-7)  # margins are float32
    torch.testing.assert_close(gradient, model.head[-1].weight.grad, atol=1e-7, rtol=1e-6)
