"""Every advertised (policy, objective) cell trains: one test, one row per cell, on the policy's own tiny fixture.

Nothing here knows a policy, and of objectives only where their defaults are too weak to be seen. Third parties get their
rows by declaring a fixture in their `PolicySpec`.
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


def examples_of(fixture: Any, view: str) -> list[Any]:
    from polyalign.records.views import VIEWS

    records = [record for record in fixture.records if ("grid" in record.tags) == (view == "grids")]
    return [example for record in records for example in VIEWS[view](record, fixture.media)]


# Options of objectives whose defaults do not raise the margin in six steps from the reference on random weights, and why.
# A likelihood term raises both sides at once, and drowns the margin (by 1000 to 1 on the tiny SD3); sft has cells of its own.
SFT_UNHEARD = {"name": "sft", "weight": 1e-4}
STRENGTHS: dict[str, dict[str, Any]] = {
    "orpo": {"odds_weight": 1e3},
    "cpo": {"nll_weight": 1e-3},
    "weighted_sum": {"terms": ["dpo", SFT_UNHEARD]},
    "mpo": {"terms": [{"name": "dpo", "weight": 0.8}, {"name": "bco_pair", "weight": 0.2}, SFT_UNHEARD]},
    "discopop": {"tau": 0.5},  # at the paper's 0.05 the loss falls when the margin falls: see DPO
    "apo_down": {"beta": 20.0},  # at the reference only the worse response is pushed; the margin's own pull is of second order
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
    """Return what should rise: the mean margin; without edges desirable minus undesirable; else the log-probability."""
    values = scores.detach().reduced(reduction).mean(-1)  # [N]
    if len(feedback.edges):
        return float((values[feedback.edges.better] - values[feedback.edges.worse]).mean())
    if (feedback.label != 0).any():
        return float(values[feedback.label > 0].mean() - values[feedback.label < 0].mean())
    return float(values.mean())


@pytest.mark.parametrize("cell", SUPPORTED, ids=lambda cell: f"{cell.policy}-{cell.objective}")
def test_cell(cell: Cell, tmp_path: Path) -> None:
    """Starts at the objective's known value, gives finite gradients, and moves the preference the right way, on every fixture.

    At step 0 the reference is the policy itself, so the loss must be `value_at_reference` (ln 2 for DPO ...) to 1e-5.
    After six AdamW steps on one batch the loss is lower, every trainable parameter has moved (but those the fixture calls
    idle), and the preference has risen both in sums and in means over decisions.
    """
    from polyalign.policies.fixture import fixtures_of

    policy_spec, objective_spec = registry().get("policies", cell.policy), registry().get("objectives", cell.objective)
    for number, fixture in enumerate(fixtures_of(policy_spec)):
        train_and_compare(fixture, objective_of(objective_spec, cell.family), objective_spec.view, tmp_path / str(number))


def train_and_compare(fixture: Any, objective: Any, view: str, cache: Path) -> None:
    import torch

    from polyalign.policies.adapters import trainable
    from polyalign.policies.reference import build_reference
    from polyalign.training.batches import collate_examples
    from polyalign.training.config import ReferenceConfig
    from polyalign.training.window import WindowLoss

    policy = fixture.build()
    examples = examples_of(fixture, view)
    assert len(examples) >= 2, "the fixture gives this objective nothing to learn from"
    policy.prepare([sample for example in examples for sample in example.samples], cache)
    micro = collate_examples(examples, policy.collator)
    policy.train()
    starting = build_reference(policy, ReferenceConfig(), cache)(micro.batch) if "reference" in objective.needs else None
    window = WindowLoss(policy, lambda batch: starting, objective, "cpu")  # one batch, so the reference scores it once
    parameters = trainable(policy)
    assert parameters, "the fixture has nothing to train"
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW([*parameters.values(), *objective.parameters()], lr=fixture.learning_rate, weight_decay=0.0)
    before = policy(micro.batch).detach()
    losses = []
    for _ in range(STEPS):
        losses.append(window.train([micro], lambda loss, last: loss.backward())["loss"])
        for name, parameter in parameters.items():
            assert parameter.grad is not None, f"no gradient reaches {name}"
            assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        optimizer.step()
        optimizer.zero_grad()
    after = policy(micro.batch).detach()

    if objective.value_at_reference is not None:
        assert losses[0] == pytest.approx(objective.value_at_reference, rel=1e-5, abs=1e-5)
    assert losses[-1] < losses[0]
    still = {name for name, parameter in parameters.items() if torch.equal(parameter.detach(), start[name])}
    idle = {name for name in parameters if any(f".{end}." in f".{name}" for end in fixture.idle)}
    assert still <= idle, f"these parameters never moved: {sorted(still - idle)}"
    for reduction in ("sum", "mean"):
        assert preference(after, micro.feedback, reduction) > preference(before, micro.feedback, reduction)


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
            assert (set(spec.inputs), set(spec.outputs)) == (set(policy.inputs), set(policy.outputs)), spec.name


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
    assert mismatch(policy, replace(objective, unsupported={policy.family: "because"})) == "because"
