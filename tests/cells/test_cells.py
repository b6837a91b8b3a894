"""Every advertised (policy, objective) cell trains: one test, one row per cell, on the policy's own tiny fixture.

A covering part runs every day, the whole matrix among the slow tests. Nothing here knows a policy, and of objectives only
where their defaults are too weak to be seen. Third parties get their rows by declaring a fixture in their `PolicySpec`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from polyalign.cells import NEEDS_OF_DATA, TEST, Cell, cells, mismatch
from polyalign.plugins.registry import registry

if TYPE_CHECKING:  # collecting this file must stay quick: the cells' own ids are collected by a test
    from polyalign.objectives.base import FeedbackTensors
    from polyalign.policies.base import Scores

STEPS = 6
ROOT = Path(__file__).parents[2]
SUPPORTED = [cell for cell in cells() if cell.supported]


def covering(supported: list[Cell]) -> set[Cell]:
    """Return cells that meet every objective in every family that it trains, and every policy: the objectives of a family go
    round its policies in turn, and DPO, or what a policy has in its place, trains them all."""
    chosen = {}
    for number, objective in enumerate(sorted({cell.objective for cell in supported})):
        for family in {cell.family for cell in supported}:
            row = [cell for cell in supported if (cell.family, cell.objective) == (family, objective)]
            if row:
                chosen[family, objective] = row[number % len(row)]
    firsts = {cell.policy: cell for cell in reversed(supported)}
    return {*chosen.values(), *({**firsts, **{cell.policy: cell for cell in supported if cell.objective == "dpo"}}).values()}


DAILY = covering(SUPPORTED)
MARKED = [
    pytest.param(cell, id=f"{cell.policy}-{cell.objective}", marks=() if cell in DAILY else pytest.mark.slow)
    for cell in SUPPORTED
]


def examples_of(fixture: Any, view: str) -> list[Any]:
    from polyalign.records.views import VIEWS

    records = [with_ratings(record) for record in fixture.records if ("grid" in record.tags) == (view == "grids")]
    if view == "self_samples":
        records = [own_better(record) for record in records]
    return [example for record in records for example in VIEWS[view](record, fixture.media)]


def own_better(record: Any) -> Any:
    """Return the record with its first candidate, the better one, as if the policy had answered it itself."""
    first, *others = record.candidates
    return record.model_copy(update={"candidates": (first.model_copy(update={"producer": "self"}), *others)})


def with_ratings(record: Any) -> Any:
    """Return the record with its first comparison said in ratings too, and in labels on the first decisions of each side: what
    objectives that need ratings or segments learn from, and others ignore."""
    from polyalign.records.schema import Comparison, Rating, Segment

    ranking = next(feedback.ranking for feedback in record.feedback if isinstance(feedback, Comparison))
    (better, *_), (worse, *_) = ranking[0], ranking[-1]
    ratings = (Rating(candidate=better, value=0.9), Rating(candidate=worse, value=0.2))
    labels = [(better, 0, 1, 1.0), (better, 1, 3, 1.0), (worse, 0, 1, -1.0)]
    segments = (Segment(candidate=c, start=start, end=end, unit="steps", value=value) for c, start, end, value in labels)
    return record.model_copy(update={"feedback": (*record.feedback, *ratings, *segments)})


# Options of objectives whose defaults do not raise the margin in six steps from the reference on random weights, and why.
# A likelihood term raises both sides at once, and drowns the margin (by 1000 to 1 on the tiny SD3); sft has cells of its own.
SFT_UNHEARD = {"name": "sft", "weight": 1e-4}
STRENGTHS: dict[str, dict[str, Any]] = {
    "cpl": {"bias": 1.0},  # below 1 it raises both sides too
    "cpl_kl": {"bias": 1.0},
    "orpo": {"odds_weight": 1e3},
    "cpo": {"nll_weight": 1e-3},
    "pro": {"sft_weight": 1e-5},
    "weighted_sum": {"terms": ["dpo", SFT_UNHEARD]},
    "mpo": {"terms": [{"name": "dpo", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2}, SFT_UNHEARD]},
    "discopop": {"tau": 0.5},  # at the paper's 0.05 the loss falls when the margin falls: see DPO
    "dckd": {"nll_weight": 1e-3},
    "crpo": {"terms": [{"name": "dpo", "beta": 2000.0}, SFT_UNHEARD]},
    "mapo": {"beta": 1e3},
    "dspo": {"beta": 1.5, "gate_beta": 1e5},  # the worse response enters through the gate only, once the policy has moved
    "refl": {"reward": "tint", "sampler": {"steps": 3}, "late": (1, 2), "ceiling": None, "weight": 1.0},
    "draft_k": {"reward": "tint", "sampler": {"steps": 3}, "last": 3},
    # At thousands tiny sound models leave in one step where a grid's columns are nearly straight.
    "tdpo": {"beta": 200.0},
    "instruct_engine": {"beta": 200.0},
    # Its own interval, 0.0003, is left in the first step; beyond it one response's step costs others, which nothing bounds.
    "gspo": {"clip_low": 0.2, "clip_high": 0.2},
    "apo_down": {"beta": 20.0},  # at the reference only the worse response is pushed; the margin's own pull is of second order
}


# Objectives whose value may rise while they are descended, and why.
RISING = {
    "cispo": "its ratio weighs the log-probability but is no part of the gradient",
    "wpo": "its weights are the policy's own likelihoods, which rise, and no part of the gradient",
}


def objective_of(spec: Any, family: str) -> Any:
    """Return the objective at its defaults, but for the strengths above and a beta in the thousands, which is meant for mean
    denoising errors: log-probabilities take 0.1."""
    config = spec.load_config()
    if config is None:
        return spec.load()(None)
    settings = dict(STRENGTHS.get(spec.name, {}))
    if family != "denoising" and getattr(config(), "beta", 0.0) > 10:
        settings["beta"] = 0.1
    return spec.load()(config(**settings))


def preference(scores: Scores, feedback: FeedbackTensors, reduction: str) -> float:
    """Return what should rise: the mean margin; without edges desirable minus undesirable (or minus the undesirable, where there
    is nothing else); else the log-probability of the data's responses, by their ratings if they have any."""
    values = scores.detach().reduced(reduction).mean(-1)  # [N]
    if len(feedback.edges):
        return float((values[feedback.edges.better] - values[feedback.edges.worse]).mean())
    if (feedback.label < 0).all():
        return -float(values.mean())
    if (feedback.label != 0).any():
        return float(values[feedback.label > 0].mean() - values[feedback.label < 0].mean())
    counted = values.new_zeros(len(values)).index_add(0, feedback.ratings.sample, feedback.ratings.value)
    counted = counted if counted.any() else (feedback.role == 0).to(values.dtype)
    return float((counted * values).sum() / counted.sum())


def head_preference(model: Any, scores: Scores, feedback: FeedbackTensors) -> float:
    """Return what should rise in a reward model: its own mean margin; without edges the rewards of well rated responses minus
    those of badly rated ones, or the log-odds of right steps minus those of wrong ones."""
    if len(feedback.edges):
        return float(model.head_margins(scores, feedback.edges).mean())
    if "segments" in model.needs:
        from polyalign.objectives.reward_modeling.process import labelled_places

        sample, place, there = labelled_places(feedback.segments, scores.extras["step_ends"], scores.mask.any(1))
        odds, right = model.logits(scores)[sample, place], feedback.segments.value > 0
        return float(odds[there & right].mean() - odds[there & ~right].mean())
    rewards, good = model.rewards(scores)[feedback.ratings.sample], feedback.ratings.value > 0.5
    return float(rewards[good].mean() - rewards[~good].mean())


def unread(policy: Any, batch: Any, features: frozenset[str]) -> set[str]:
    """Return the names of trainable parameters that the features do not depend on, such as the head over the vocabulary."""
    import torch

    from polyalign.policies.adapters import trainable

    parameters = trainable(policy)
    read = [value.square().sum() for value in policy(batch, features).extras.values() if value.requires_grad]
    gradients = torch.autograd.grad(sum(read), list(parameters.values()), allow_unused=True) if read else [None] * len(parameters)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}


@pytest.mark.parametrize("cell", MARKED)
def test_cell(cell: Cell, tmp_path: Path) -> None:
    """Starts at the objective's known value, gives finite gradients, and moves the preference the right way, on every fixture.

    At step 0 the reference is the policy itself, so the loss must be `value_at_reference` (ln 2 for DPO ...) to 1e-5.
    After six AdamW steps on one batch the loss is lower, every trainable parameter has moved (but those the fixture calls
    idle, and for a reward model those that its features do not depend on), and the preference has risen: both in sums and in
    means over decisions, or the reward model's own.
    """
    from polyalign.policies.fixture import fixtures_of

    policy_spec, objective_spec = registry().get("policies", cell.policy), registry().get("objectives", cell.objective)
    for number, fixture in enumerate(fixtures_of(policy_spec)):
        train_and_compare(
            fixture,
            objective_of(objective_spec, cell.family),
            objective_spec.view,
            tmp_path / str(number),
            cell.objective in RISING,
        )


def train_and_compare(fixture: Any, objective: Any, view: str, cache: Path, may_rise: bool = False) -> None:
    import torch

    from polyalign.objectives.reward_modeling.base import RewardModel
    from polyalign.objectives.unpaired import Unlikelihood
    from polyalign.policies.adapters import trainable
    from polyalign.policies.reference import build_reference
    from polyalign.training.batches import collate_examples
    from polyalign.training.config import ReferenceConfig
    from polyalign.training.window import WindowLoss

    policy = fixture.with_values() if "values" in objective.needs and fixture.with_values else fixture.build()
    examples = examples_of(fixture, view)
    if isinstance(objective, Unlikelihood):  # it knows bad responses only, and random weights give both sides like words
        examples = [example for example in examples if example.labels == (-1,)]
    assert len(examples) >= 2, "the fixture gives this objective nothing to learn from"
    policy.prepare([sample for example in examples for sample in example.samples], cache)
    if "token_targets" in objective.needs:
        examples = taught(policy, objective, examples, fixture, cache)
    objective.attach(policy, examples)
    reference = build_reference(policy, ReferenceConfig(), cache) if "reference" in objective.needs else None
    rolled_out = "rollouts" in objective.needs
    micro = (
        answered(policy, objective, reference, examples, fixture) if rolled_out else collate_examples(examples, policy.collator)
    )
    policy.train()
    starting = reference(micro.batch, objective.reference_wants) if reference else None
    window = WindowLoss(policy, lambda *_: starting, objective, "cpu")  # one batch, so the reference scores it once
    parameters = trainable(policy)
    assert parameters or list(objective.parameters()), "the fixture has nothing to train"
    judges = isinstance(objective, RewardModel)
    features = objective.wants if judges else frozenset[str]()
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW([*parameters.values(), *objective.parameters()], lr=fixture.learning_rate, weight_decay=0.0)
    draws = "sample_grad" in objective.needs  # inside the step: there are no responses to score, only rewards
    before = window.evaluate([micro]) if draws else policy(micro.batch, features).detach()
    if judges:
        before = head_preference(objective, before, micro.feedback)
    losses = []
    for _ in range(STEPS):
        losses.append(window.train([micro], lambda loss, last: loss.backward())["loss"])
        for name, parameter in parameters.items():
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        optimizer.step()
        optimizer.zero_grad()
    after = window.evaluate([micro]) if draws else policy(micro.batch, features).detach()

    if objective.value_at_reference is not None:
        assert losses[0] == pytest.approx(objective.value_at_reference, rel=1e-5, abs=1e-5)
    assert may_rise or losses[-1] < losses[0]
    still = {name for name, parameter in parameters.items() if torch.equal(parameter.detach(), start[name])}
    idle = {name for name in parameters if any(f".{end}." in f".{name}" for end in fixture.idle)}
    idle |= unread(policy, micro.batch, features) if judges else set()
    assert still <= idle, f"these parameters never moved: {sorted(still - idle)}"
    if draws:
        assert after["reward"] > before["reward"]
        return
    if judges:
        assert head_preference(objective, after, micro.feedback) > before
        return
    for reduction in ("sum", "mean"):
        assert preference(after, micro.feedback, reduction) > preference(before, micro.feedback, reduction)


TAUGHT = ["dpo", {"name": "sft", "weight": 0.01}]  # answers of one form would drown what sets them apart


def taught(student: Any, objective: Any, examples: list[Any], fixture: Any, cache: Path) -> list[Any]:
    """Let a teacher that has learned the pairs and their better answers fill the student's store; return the examples, with
    answers of the student's own where the objective learns on those."""
    import torch
    from toys.gaussian import ListSource

    from polyalign.objectives.terms import WeightedSumConfig
    from polyalign.objectives.weighted_sum import WeightedSum
    from polyalign.policies.adapters import trainable
    from polyalign.policies.reference import FrozenCopy
    from polyalign.training import teaching
    from polyalign.training.batches import collate_examples
    from polyalign.training.self_samples import SelfSamples, WithSelfSamples
    from polyalign.training.window import WindowLoss

    tuned = fixture.build()
    pairs = examples_of(fixture, "pairs")
    tuned.prepare([sample for example in pairs for sample in example.samples], cache)
    window = WindowLoss(tuned, FrozenCopy(tuned), WeightedSum(WeightedSumConfig(terms=TAUGHT)), "cpu")
    optimizer = torch.optim.AdamW(trainable(tuned).values(), lr=3 * fixture.learning_rate, weight_decay=0.0)
    for _ in range(2 * STEPS):
        window.train([collate_examples(pairs, tuned.collator)], lambda loss, last: loss.backward())
        optimizer.step()
        optimizer.zero_grad()
    teachers = teaching.Teachers(tuned.eval(), fixture.build().eval())
    if "self_samples" in objective.needs:
        own = SelfSamples(cache, student, 1, 0, {"max_new_tokens": 6})
        own.draw([sample for example in examples for sample in example.samples])
        examples = [WithSelfSamples(ListSource(examples), own)[number] for number in range(len(examples))]
    settings = {"policy": {"name": "text", "base": "unused"}, "top_k": 32, "store": str(cache / "teacher")}
    config = teaching.TeacherConfig.model_validate(settings)
    store = teaching.open_store(config, teachers, student)
    teaching.teach(teachers, student, [sample for example in examples for sample in example.samples], store, 8, quiet=True)
    student.collator.taught = store
    return examples


def answered(policy: Any, objective: Any, reference: Any, examples: list[Any], fixture: Any) -> Any:
    """Return one round of the policy's own responses, rewarded by a rule that any modality has: a number hashed from each."""
    from toys.gaussian import ListSource

    from polyalign.randomness import keyed_seed
    from polyalign.rewards.base import Reward
    from polyalign.training.config import OnlineConfig, TrainingConfig
    from polyalign.training.online import RolloutSteps
    from polyalign.training.rollouts import Judges

    class Hashed(Reward):
        def score(self, items: Any) -> list[float]:
            outputs = [item.output for item in items]
            content = [output.tobytes().hex() if hasattr(output, "tobytes") else repr(output) for output in outputs]
            return [keyed_seed(one) % 1000 / 1000 for one in content]

    decoding = fixture.decoding_whole if "predictions" in objective.needs else fixture.decoding
    online = OnlineConfig.model_validate({"rewards": [{"name": "hashed"}], "samples_per_prompt": 3, "decoding": decoding})
    judges = Judges(online, {"hashed": Hashed()}, {})
    settings = TrainingConfig(batch_size=len(examples))
    steps = RolloutSteps(ListSource(examples), policy, objective, reference, judges, online, settings)
    (micro,) = steps[0].micro_batches
    return micro


def test_every_supported_cell_names_a_test_that_pytest_collects() -> None:
    """The matrix cannot claim more than is tested: its node ids are compared with what pytest really collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", f"{TEST.partition('::')[0]}"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    collected = {line for line in printed.splitlines() if line.startswith(TEST)}
    assert collected == {cell.test for cell in cells() if cell.supported}
    assert collected


def test_unsupported_cells_say_why_and_claim_no_test() -> None:
    for cell in cells():
        assert (cell.test is None) == bool(cell.reason) == (not cell.supported), cell


def test_light_specs_repeat_what_the_classes_say() -> None:
    """`needs` and `scope` are declared twice, so that listing needs no torch: they must agree."""
    for entry in registry().entries("objectives"):
        spec = entry.spec
        config = spec.load_config()
        objective = spec.load()(config() if config else None)
        assert set(spec.needs) == set(objective.needs), spec.name
        assert spec.scope == objective.scope, spec.name


def test_fixtures_provide_what_their_specs_promise() -> None:
    from polyalign.policies.fixture import fixtures_of

    for spec in [entry.spec for entry in registry().entries("policies")]:
        for policy in [fixture.build() for fixture in fixtures_of(spec)]:
            assert policy.family == spec.family, spec.name
            assert set(spec.provides) == set(policy.provides), spec.name
            assert set(policy.inputs) <= set(spec.inputs), spec.name  # encoder-features reads what its encoder does
            assert set(spec.outputs) == set(policy.outputs), spec.name


def test_what_runs_every_day_covers_policies_and_the_objectives_of_each_family() -> None:
    assert {cell.policy for cell in DAILY} == {cell.policy for cell in SUPPORTED}
    assert {(cell.family, cell.objective) for cell in DAILY} == {(cell.family, cell.objective) for cell in SUPPORTED}
    assert len(DAILY) < len(SUPPORTED)


def test_every_family_has_a_policy_and_every_objective_a_cell() -> None:
    """The three unlike things of the design go through the same matrix, apart from what says why it cannot."""
    found = cells()
    assert {"tokens", "denoising"} <= {cell.family for cell in found if cell.supported}
    for entry in registry().entries("objectives"):
        assert any(cell.supported for cell in found if cell.objective == entry.spec.name), entry.spec.name


def test_mismatch_knows_needs_of_data_from_needs_of_the_policy() -> None:
    from dataclasses import replace

    policy = registry().entries("policies")[0].spec
    objective = registry().get("objectives", "dpo")
    assert mismatch(policy, replace(objective, needs=tuple(NEEDS_OF_DATA))) == ""
    assert mismatch(policy, replace(objective, needs=("telepathy",))).startswith("it needs telepathy; the policy provides ")
    refused = replace(objective, unsupported={policy.family: "because"}, unless="patience")
    assert mismatch(policy, refused) == "because"
    assert mismatch(replace(policy, switches={"patience": "waits"}), refused) == ""
