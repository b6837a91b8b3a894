"""InstructEngine against a table of denoising errors worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from toys.scored import GRID_ROWS, example, feedback_of, gradient, grid, loss_of, pair, scores_of, terms_of

from polyalign.objectives.config import DPOConfig, InstructEngineConfig
from polyalign.objectives.instruct_engine import InstructEngine
from polyalign.objectives.pairwise import DPO
from polyalign.policies.base import Kind
from polyalign.records.samples import Edge

# D[i][j] = error change of picture j under instruction i (policy minus reference), in thousandths.
D = ((-1.0, 2.0), (1.5, -0.5))
ERROR = 0.1  # the reference's error everywhere


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def table(d=D):
    """Scores of the four samples (x1, y1), (x1, y2), (x2, y1), (x2, y2): -1/2 of the error."""
    return scores_of([[[-0.5 * (ERROR + d[i][j] / 1000)]] for i in (0, 1) for j in (0, 1)], Kind.DENOISING)


def reference(count: int = 4):
    return scores_of([[[-0.5 * ERROR]]] * count, Kind.DENOISING)


def test_rows_equal_the_written_out_table():
    """beta/2 * 0.003 and beta/2 * 0.002 with beta 2000: -log sigma(3) - log sigma(2)."""
    loss = loss_of(InstructEngine(), table(), reference(), feedback_of(grid()))
    assert loss.item() == pytest.approx(-math.log(sigma(3)) - math.log(sigma(2)), abs=1e-9)


def test_columns_are_added_by_their_weight():
    """Columns: D11 - D21 = -2.5 and D22 - D12 = -2.5, both -log sigma(2.5)."""
    loss = loss_of(InstructEngine(InstructEngineConfig(column_weight=0.3)), table(), reference(), feedback_of(grid()))
    rows = -math.log(sigma(3)) - math.log(sigma(2))
    assert loss.item() == pytest.approx(rows - 0.3 * 2 * math.log(sigma(2.5)), abs=1e-9)


def test_edge_margin_is_subtracted_after_beta():
    edges = [Edge(0, 1, margin=0.5), Edge(3, 2)]
    loss = loss_of(InstructEngine(), table(), reference(), feedback_of(example(4, edges)))
    assert loss.item() == pytest.approx(-math.log(sigma(2.5)) - math.log(sigma(2)), abs=1e-9)


def test_gradient_equals_the_closed_form():
    scores = table()
    loss = loss_of(InstructEngine(), scores, reference(), feedback_of(grid()))
    first, second = -2000 * sigma(-3), -2000 * sigma(-2)
    expected = torch.tensor([first, -first, -second, second], dtype=torch.float64).view(4, 1, 1)
    torch.testing.assert_close(gradient(loss, scores), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("config", "value"),
    [
        (InstructEngineConfig(), 2 * math.log(2)),
        (InstructEngineConfig(terms="mean"), math.log(2)),
        (InstructEngineConfig(column_weight=0.5), 3 * math.log(2)),
        (InstructEngineConfig(column_weight=0.5, terms="mean"), 1.5 * math.log(2)),
    ],
)
def test_value_at_reference(config: InstructEngineConfig, value: float):
    objective = InstructEngine(config)
    assert objective.value_at_reference == pytest.approx(value, abs=1e-15)
    loss = loss_of(objective, reference(), reference(), feedback_of(grid()))
    assert loss.item() == pytest.approx(value, abs=1e-12)


def test_mean_of_terms_is_dpo_on_the_rows():
    config = InstructEngineConfig(terms="mean", beta=500)
    loss = loss_of(InstructEngine(config), table(), reference(), feedback_of(grid()))
    dpo = loss_of(DPO(DPOConfig(beta=500)), table(), reference(), feedback_of(grid()))
    assert loss.item() == pytest.approx(dpo.item(), abs=1e-12)


def test_weight_counts_grids_not_rows():
    scores = scores_of([[[0.0]]] * 10)
    terms = terms_of(InstructEngine(), scores, scores, feedback_of(grid(), grid(weight=0.5), example(2)))
    assert terms["rows"].weight.item() == 1.5


@pytest.mark.parametrize("terms", ["sum", "mean"])
def test_a_grid_of_weight_two_is_two_grids(terms: str):
    objective = InstructEngine(InstructEngineConfig(terms=terms, column_weight=1.0, beta=1.0))
    values = [[[x]] for x in (0.3, -0.1, 0.2, 0.7)]
    other = [[[x]] for x in (-0.5, 0.9, 0.1, 0.4)]
    zero = [[[0.0]]] * 4
    weighted = loss_of(objective, scores_of(values + other), scores_of(zero * 2), feedback_of(grid(weight=2.0), grid()))
    repeated = loss_of(objective, scores_of(values * 2 + other), scores_of(zero * 3), feedback_of(grid(), grid(), grid()))
    assert weighted.item() == pytest.approx(repeated.item(), abs=1e-9)


def test_without_columns_their_edges_change_nothing():
    rows_only = example(4, GRID_ROWS)
    assert set(terms_of(InstructEngine(), table(), reference(), feedback_of(grid()))) == {"rows"}
    assert loss_of(InstructEngine(), table(), reference(), feedback_of(rows_only)).item() == pytest.approx(
        loss_of(InstructEngine(), table(), reference(), feedback_of(grid())).item()
    )


def test_a_plain_pair_is_one_row():
    loss = loss_of(InstructEngine(), reference(2), reference(2), feedback_of(pair()))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
