"""The loop's behaviour with a toy policy: checkpoints, best, failures, references, schedules."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys.gaussian import GaussianPolicy, GaussianWithAdapter, ListSource, pair_examples
from toys.worker import recipe

from polyalign.errors import TrainingError
from polyalign.objectives.base import Objective
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.dense import DenseDPO
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.reward_weighted import RWR
from polyalign.policies.reference import AdaptersOff, CachedScores, FrozenCopy
from polyalign.records.samples import Labelled, Rated
from polyalign.training import checkpoint
from polyalign.training.batches import collate_examples, split
from polyalign.training.config import OptimizerConfig, TrainingConfig
from polyalign.training.optimizer import MovingAverage, learning_rate
from polyalign.training.tracking import read_metrics
from polyalign.training.trainer import Trainer
from polyalign.training.window import NonFiniteLoss


def trainer(
    folder: Path, policy: GaussianPolicy | None = None, examples=None, reference=None, objective=None, **training
) -> Trainer:
    policy = policy or GaussianPolicy()
    examples = examples or pair_examples()
    settings = {"steps": 6, "batch_size": 4, "optimizer": {"learning_rate": 0.05}} | training
    held_out = ListSource(examples[:4])
    return Trainer(
        recipe(settings),
        policy,
        objective or DPO(DPOConfig(beta=0.5)),
        reference or FrozenCopy(policy),
        ListSource(examples),
        held_out,
        folder,
    )


def test_corrupt_newest_checkpoint_falls_back_with_a_message(tmp_path: Path, capsys) -> None:
    trainer(tmp_path / "a", checkpoint={"every": 2, "keep_last": 3}).train()
    newest = tmp_path / "a" / "checkpoints" / "step-000006" / "policy.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3] + b"abc")
    trainer(tmp_path / "a", checkpoint={"every": 2, "keep_last": 3}).train(resume=True)
    told = capsys.readouterr().err
    assert "step-000006 is not usable: policy.safetensors is damaged" in told
    assert "resuming from step-000004" in told
    assert [row["step"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl")] == [0, 1, 2, 3, 4, 5, 6]


def test_last_n_and_best_checkpoints_are_kept(tmp_path: Path) -> None:
    trained = trainer(
        tmp_path, steps=8, eval_every=1, checkpoint={"every": 1, "keep_last": 2, "best_metric": "eval/loss", "best_is": "min"}
    ).train()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    rows = {row["step"]: row["eval/loss"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["step"]}
    assert trained.best == f"step-{min(rows, key=rows.get):06d}"
    assert set(kept) == {"step-000007", "step-000008", trained.best}


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    with pytest.raises(TrainingError, match="--resume"):
        trainer(tmp_path).train()


def test_non_finite_loss_names_the_records_and_keeps_the_weights(tmp_path: Path) -> None:
    class Exploding(GaussianPolicy):
        def forward(self, batch, want=frozenset()):
            scores = super().forward(batch, want)
            bad = torch.tensor([sample.id.startswith("r3/") for sample in batch.samples])
            scores.log_probs = torch.where(bad[:, None, None], scores.log_probs * float("nan"), scores.log_probs)
            return scores

    policy = Exploding()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    run = trainer(tmp_path, policy, reference=FrozenCopy(GaussianPolicy()), batch_size=12, micro_batch_size=4)
    with pytest.raises(NonFiniteLoss, match=r"records 'r3'\."):
        run.train()
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert checkpoint.newest(tmp_path / "checkpoints")[0].name == "step-000000"


def test_adapter_reference_equals_a_frozen_copy_of_the_base(tmp_path: Path) -> None:
    def rows(folder: str, make_reference) -> list[dict]:
        policy = GaussianWithAdapter()
        trainer(tmp_path / folder, policy, reference=make_reference(policy)).train()
        return [{k: v for k, v in row.items() if "time" not in k} for row in read_metrics(tmp_path / folder / "metrics.jsonl")]

    base = FrozenCopy(GaussianPolicy())
    assert rows("off", AdaptersOff) == rows("copy", lambda policy: base)


def test_cached_reference_scores_give_the_same_run_and_are_computed_once(tmp_path: Path) -> None:
    def run(name: str, cache: bool) -> tuple[list[dict], CachedScores | None, int]:
        policy = GaussianPolicy()
        inner = FrozenCopy(policy)
        calls: list[int] = []
        inner.policy.register_forward_hook(lambda *_: calls.append(1))
        reference = CachedScores(inner, tmp_path / "cache", policy.fingerprint()) if cache else inner
        trainer(tmp_path / name, policy, reference=reference, steps=12).train()
        rows = [{k: v for k, v in row.items() if "time" not in k} for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        return rows, reference if cache else None, len(calls)

    live, _, live_calls = run("live", False)
    cached, _, cached_calls = run("cached", True)
    again, store, again_calls = run("again", True)
    assert cached == [pytest.approx(row, abs=1e-6) for row in live]
    assert again == cached
    assert (live_calls, again_calls) == (14, 0)  # 12 steps, one evaluation before and one after
    assert cached_calls < live_calls and store is not None and store.misses == 0


def test_cached_scores_refuse_draws_that_change_every_epoch(tmp_path: Path) -> None:
    policy = GaussianPolicy()
    batch = collate_examples(pair_examples(2), policy.collator).batch
    batch.cache_keys = None
    with pytest.raises(TrainingError, match=r"policy\.bank"):
        CachedScores(FrozenCopy(policy), tmp_path, "f")(batch)


def test_objective_that_wants_what_the_policy_lacks_is_refused_in_one_sentence(tmp_path: Path) -> None:
    class WantsEntropy(Objective):
        wants = frozenset({"entropy"})

    with pytest.raises(TrainingError, match="WantsEntropy needs entropy from the policy, but GaussianPolicy provides only"):
        trainer(tmp_path, objective=WantsEntropy())


@pytest.mark.parametrize(
    ("objective", "need"), [(DPO(DPOConfig(margin_from="ratings")), "ratings"), (DenseDPO(), "segments"), (RWR(), "ratings")]
)
def test_data_without_the_feedback_that_the_objective_learns_from_is_refused(tmp_path: Path, objective, need: str) -> None:
    with pytest.raises(TrainingError, match=f"{type(objective).__name__} learns from {need}, and none of the 12 training"):
        trainer(tmp_path, objective=objective)
    examples = pair_examples()
    examples[3] = replace(examples[3], ratings=(Rated(0, 1.0), Rated(1, 0.0)), segments=(Labelled(0, 0, 1, "steps", 1.0),))
    trainer(tmp_path, objective=objective, examples=examples)


def test_batch_scope_without_statistics_refuses_accumulation(tmp_path: Path) -> None:
    class Sorted(DPO):
        scope = "batch"

    with pytest.raises(TrainingError, match="needs the whole batch at once"):
        trainer(tmp_path, objective=Sorted(DPOConfig(beta=0.5)), micro_batch_size=2).train()


def test_budget_cuts_by_cost_and_names_what_does_not_fit() -> None:
    collator = GaussianPolicy().collator
    examples = pair_examples(6)  # costs (1+2), (2+3), (3+1), (1+2), (2+3), (3+1)
    groups = list(split(examples, collator, TrainingConfig(micro_batch_budget=8)))
    assert [len(group) for group in groups] == [2, 2, 1, 1]
    with pytest.raises(TrainingError, match="'r1' alone costs 5"):
        list(split(examples, collator, TrainingConfig(micro_batch_budget=4)))


def test_where_rows_are_padded_the_budget_counts_padding_and_like_lengths_come_together() -> None:
    class Padded(type(GaussianPolicy().collator)):  # type: ignore[misc]
        pads = True

    examples = pair_examples(6)  # rows (1, 2), (2, 3), (3, 1), (1, 2), (2, 3), (3, 1): alone 2 x 2, 2 x 3, ...
    groups = list(split(examples, Padded(), TrainingConfig(micro_batch_budget=8)))
    assert [[example.record_id for example in group] for group in groups] == [["r0", "r3"], ["r1"], ["r2"], ["r4"], ["r5"]]
    by_count = list(split(examples, Padded(), TrainingConfig(micro_batch_size=3)))
    assert [[example.record_id for example in group] for group in by_count] == [["r0", "r3", "r1"], ["r2", "r4", "r5"]]
    with pytest.raises(TrainingError, match="'r1' alone costs 6"):
        list(split(examples, Padded(), TrainingConfig(micro_batch_budget=5)))


def test_loader_workers_change_nothing(tmp_path: Path) -> None:
    rows = []
    for workers in (0, 2):
        run = trainer(tmp_path / str(workers), steps=4)
        run.recipe = run.recipe.model_copy(update={"data": run.recipe.data.model_copy(update={"workers": workers})})
        run.train()
        rows.append(
            [{k: v for k, v in row.items() if "time" not in k} for row in read_metrics(tmp_path / str(workers) / "metrics.jsonl")]
        )
    assert rows[0] == rows[1]


def test_learning_rate_warms_up_linearly_and_falls_by_cosine() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    assert [learning_rate(config, step, 12) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(config, 8, 12) == pytest.approx(0.5)  # half way through the cosine
    assert learning_rate(config, 12, 12) == pytest.approx(0.0)


def test_moving_average_is_the_geometric_sum() -> None:
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    average = MovingAverage({"w": weight}, decay=0.9)
    for value in (1.0, 2.0):
        weight.data.fill_(value)
        average.update()
    assert average.average["w"].item() == pytest.approx(0.1 * 0.9 * 1.0 + 0.1 * 2.0)
    average.swap()
    assert weight.item() == pytest.approx(0.29)
    average.swap()
    assert weight.item() == pytest.approx(2.0)


def test_bf16_run_stays_close_to_fp32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer(tmp_path / precision, precision=precision).train()
        losses[precision] = [row["loss"] for row in read_metrics(tmp_path / precision / "metrics.jsonl") if "loss" in row]
    assert losses["bf16"][0] == pytest.approx(math.log(2), abs=1e-6)  # the reference is scored in the same precision
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_tensorboard_tracker_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer(tmp_path, trackers=("tensorboard",)).train()
    assert list((tmp_path / "tensorboard").rglob("events.*"))


def test_metrics_file_cut_by_a_crash_is_read_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": math.log(2)}) + '\n{"step": 2, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1]
