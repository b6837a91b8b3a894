"""References besides the starting weights: those of another run, and further ones that an objective reads by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys.gaussian import GaussianPolicy, ListSource, pair_examples
from toys.worker import recipe

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.d2o import D2O
from polyalign.objectives.d2o_config import D2OConfig
from polyalign.objectives.pairwise import DPO
from polyalign.policies.reference import CachedScores, FrozenCopy, build_reference
from polyalign.training.batches import collate_examples
from polyalign.training.config import ReferenceConfig
from polyalign.training.trainer import Trainer
from polyalign.training.window import WindowLoss

SETTINGS = {"steps": 4, "batch_size": 4, "optimizer": {"learning_rate": 0.05}}


def trained(folder: Path) -> GaussianPolicy:
    policy = GaussianPolicy()
    source = ListSource(pair_examples())
    Trainer(recipe(SETTINGS), policy, DPO(DPOConfig(beta=0.5)), FrozenCopy(policy), source, None, folder).train()
    return policy


def test_a_run_lends_its_trained_weights_and_the_policy_keeps_its_own(tmp_path: Path) -> None:
    helpful = trained(tmp_path / "helpful")
    policy = GaussianPolicy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    reference = build_reference(policy, ReferenceConfig(run=str(tmp_path / "helpful")), tmp_path / "cache")
    micro = collate_examples(pair_examples(), policy.collator)
    assert not torch.equal(reference(micro.batch).log_probs, policy(micro.batch).log_probs)
    torch.testing.assert_close(reference(micro.batch).log_probs, helpful(micro.batch).log_probs.detach())
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_cached_scores_of_a_run_are_not_those_of_the_start(tmp_path: Path) -> None:
    trained(tmp_path / "helpful")
    policy = GaussianPolicy()
    settings = [ReferenceConfig(cache=True), ReferenceConfig(cache=True, run=str(tmp_path / "helpful"))]
    start, other = (build_reference(policy, one, tmp_path / "cache") for one in settings)
    assert isinstance(start, CachedScores) and isinstance(other, CachedScores)
    assert start.prefix != other.prefix


def test_a_run_without_checkpoint_or_of_another_policy_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no usable checkpoint"):
        build_reference(GaussianPolicy(), ReferenceConfig(run=str(tmp_path)), tmp_path)
    trained(tmp_path / "helpful")
    frozen = GaussianPolicy().requires_grad_(False)
    with pytest.raises(TrainingError, match="which this policy does not train"):
        build_reference(frozen, ReferenceConfig(run=str(tmp_path / "helpful")), tmp_path)


def test_other_weights_cannot_be_had_by_switching_adapters_off() -> None:
    with pytest.raises(ValueError, match="leave kind 'adapters_off' out, or drop run"):
        ReferenceConfig(kind="adapters_off", run="runs/other")


def test_d2o_trains_against_two_references_in_one_window(tmp_path: Path) -> None:
    """The window's loss is the objective's on both references' scores, split or whole; the trainer saves both caches."""
    trained(tmp_path / "helpful")
    policy = GaussianPolicy()
    helpful = build_reference(policy, ReferenceConfig(run=str(tmp_path / "helpful"), cache=True), tmp_path / "cache")
    start, objective, examples = FrozenCopy(policy), D2O(D2OConfig(beta=0.5, alpha=0.3)), pair_examples()
    whole = collate_examples(examples, policy.collator)
    scores = {"reference": start(whole.batch), "helpful": helpful(whole.batch)}
    term = objective(policy(whole.batch), scores, FeedbackTensors.of(examples))["preference"]
    window = WindowLoss(policy, start, objective, "cpu", further={"helpful": helpful})
    parts = [collate_examples(examples[:5], policy.collator), collate_examples(examples[5:], policy.collator)]
    for micro_batches in ([whole], parts):
        loss = window.train(micro_batches, lambda loss, last: loss.backward())["loss"]
        assert loss == pytest.approx((term.sum / term.weight).item(), abs=1e-6)
    alone = WindowLoss(policy, start, objective, "cpu").train([whole], lambda loss, last: None)["loss"]
    assert abs(alone - loss) > 1e-3

    source = ListSource(examples)
    run = Trainer(
        recipe(SETTINGS), policy, objective, start, source, None, tmp_path / "run", further_references={"helpful": helpful}
    )
    run.train()
    assert list((tmp_path / "cache").glob(f"{helpful.prefix}-*.safetensors"))
