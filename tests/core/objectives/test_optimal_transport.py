"""AOT: sorting against sorting, weights against linear programming, split steps against whole ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from toys.scored import feedback_of, gradient, loss_of, pair, scores_of, terms_of

from polyalign.objectives.base import averaged
from polyalign.objectives.config import AOTConfig, AOTUnpairedConfig
from polyalign.objectives.optimal_transport import AOT, coupling

BETA, E = 0.5, 0.2
KINDS = {"aot": AOTConfig(beta=BETA, label_smoothing=E), "aot_unpaired": AOTUnpairedConfig(beta=BETA, label_smoothing=E)}
each = pytest.mark.parametrize("kind", KINDS)


def random_rows(pairs: int, draws: int = 1, seed: int = 0, size: float = 2.0) -> tuple[list, list]:
    generator = torch.Generator().manual_seed(seed)
    return tuple((size * torch.randn(2 * pairs, draws, 2, dtype=torch.float64, generator=generator)).tolist() for _ in range(2))  # type: ignore[return-value]


def plainly(kind: str, policy: torch.Tensor, reference: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    """The formula for edges of equal weight and one draw, in torch's own sort; rows: better, worse, better, worse ..."""
    better, worse = policy[0::2], policy[1::2]
    if kind == "aot":
        upper, lower = BETA * (better - worse) - margin, BETA * (reference[0::2] - reference[1::2])
    else:
        upper, lower = BETA * (better - reference[0::2]) - margin / 2, BETA * (worse - reference[1::2]) + margin / 2
    z = upper.sort().values - lower.sort().values
    return (-(1 - E) * F.logsigmoid(z) - E * F.logsigmoid(-z)).mean()


@each
def test_equal_weights_are_plain_sorting_in_value_and_gradient(kind: str):
    policy, reference = random_rows(7)
    margins = [0.0, 0.25, 0.5, 0.0, 1.0, 0.0, 0.125]
    scores = scores_of(policy)
    loss = loss_of(AOT(KINDS[kind]), scores, scores_of(reference), feedback_of(*(pair(margin=m) for m in margins)))
    leaf = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    frozen = torch.tensor(reference, dtype=torch.float64).sum((1, 2))
    oracle = plainly(kind, leaf.sum((1, 2)), frozen, torch.tensor(margins, dtype=torch.float64))
    assert loss.item() == pytest.approx(oracle.item(), abs=1e-9)
    torch.testing.assert_close(gradient(loss, scores), torch.autograd.grad(oracle, leaf)[0], atol=1e-9, rtol=0)


@each
def test_paired_and_unpaired_differ_from_dpo_by_who_meets_whom(kind: str):
    """Two pairs whose order in the policy is not that of the reference (or whose winners outrank crosswise)."""
    policy, reference = random_rows(6, seed=1)
    loss = loss_of(AOT(KINDS[kind]), scores_of(policy), scores_of(reference), feedback_of(*[pair()] * 6)).item()
    values, frozen = (torch.tensor(x, dtype=torch.float64).sum((1, 2)) for x in (policy, reference))
    z = BETA * ((values - frozen)[0::2] - (values - frozen)[1::2])
    dpo = (-(1 - E) * F.logsigmoid(z) - E * F.logsigmoid(-z)).mean().item()
    assert abs(loss - dpo) > 1e-3


@each
def test_an_edge_of_weight_two_is_two_edges(kind: str):
    policy, reference = random_rows(3, seed=2)
    weighted = loss_of(
        AOT(KINDS[kind]), scores_of(policy), scores_of(reference), feedback_of(pair(weight=2.0), pair(), pair(weight=3.0))
    )
    order = [0, 1, 0, 1, 2, 3, 4, 5, 4, 5, 4, 5]
    copies = [scores_of([rows[i] for i in order]) for rows in (policy, reference)]
    assert weighted.item() == pytest.approx(loss_of(AOT(KINDS[kind]), *copies, feedback_of(*[pair()] * 6)).item(), abs=1e-12)


@each
def test_an_edge_of_weight_zero_contributes_nothing(kind: str):
    policy, reference = random_rows(3, seed=4)
    scores = scores_of(policy)
    terms = terms_of(AOT(KINDS[kind]), scores, scores_of(reference), feedback_of(pair(), pair(weight=0.0), pair()))["preference"]
    kept = [0, 1, 4, 5]
    alone = terms_of(
        AOT(KINDS[kind]),
        scores_of([policy[i] for i in kept]),
        scores_of([reference[i] for i in kept]),
        feedback_of(pair(), pair()),
    )["preference"]
    assert (terms.sum.item(), terms.weight.item()) == (pytest.approx(alone.sum.item(), abs=1e-12), 2.0)
    assert gradient(terms.sum, scores)[2:4].eq(0).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.sampled_from((0.25, 0.3, 1.0, 1.7))), min_size=1, max_size=6))
def test_the_coupling_of_weighted_values_is_the_cheapest_transport(rows: list[tuple[float, float, float]]):
    """Oracle: linear programming. -log sigma(u - v) is convex in u - v, so that no coupling of the masses costs less."""
    upper, lower, mass = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    shares, others = coupling(upper, mass, upper, lower, mass)
    torch.testing.assert_close(shares.sum(1), mass)
    torch.testing.assert_close(shares.sum(0), mass[lower.argsort()])
    cost = -F.logsigmoid(upper[:, None] - others)
    count = len(mass)
    marginals = np.vstack([np.kron(np.eye(count), np.ones(count)), np.kron(np.ones(count), np.eye(count))])
    given_mass = np.concatenate([mass.numpy(), mass[lower.argsort()].numpy()])
    best = linprog(cost.flatten().numpy(), A_eq=marginals[:-1], b_eq=given_mass[:-1])
    assert (shares * cost).sum().item() == pytest.approx(best.fun, abs=1e-7)


@each
@pytest.mark.parametrize("cuts", [[3], [1, 2, 5], [1, 2, 3, 4, 5]])
def test_parts_of_a_step_add_up_to_the_whole_in_value_and_gradient(kind: str, cuts: list[int]):
    """Two draws per sample, unequal weights, two edges that tie exactly in either list."""
    policy, reference = random_rows(6, draws=2, seed=5)
    policy[6:8], reference[6:8] = policy[2:4], reference[2:4]
    weights = [1.0, 0.5, 2.0, 1.5, 0.25, 1.0]
    objective = AOT(KINDS[kind])
    whole = scores_of(policy)
    term = terms_of(objective, whole, scores_of(reference), feedback_of(*(pair(weight=w) for w in weights)))["preference"]
    parts = []
    for start, end in zip([0, *cuts], [*cuts, 6], strict=True):
        rows = slice(2 * start, 2 * end)
        feedback = feedback_of(*(pair(weight=w) for w in weights[start:end]))
        parts.append((scores_of(policy[rows]), {"reference": scores_of(reference[rows])}, feedback))
    statistics = averaged({"values": torch.cat([objective.statistics(*part)["values"] for part in reversed(parts)])})
    terms = [objective(*part, statistics)["preference"] for part in parts]
    assert sum(t.sum.item() for t in terms) == pytest.approx(term.sum.item(), abs=1e-12)
    assert sum(t.weight.item() for t in terms) == term.weight.item()
    pieces = [gradient(t.sum, part[0]) for t, part in zip(terms, parts, strict=True)]
    torch.testing.assert_close(torch.cat(pieces), gradient(term.sum, whole), atol=1e-12, rtol=0)


@each
def test_a_value_that_rounding_moved_between_two_passes_finds_its_place(kind: str):
    policy, reference = random_rows(5, seed=6)
    objective, feedback = AOT(KINDS[kind]), feedback_of(*[pair()] * 5)
    scores, references = scores_of(policy), {"reference": scores_of(reference)}
    values = objective.statistics(scores, references, feedback)["values"]
    moved = values.clone()
    moved[:, :2] += 1e-9 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, near = (objective(scores, references, feedback, {"values": v})["preference"].sum.item() for v in (values, moved))
    assert near == pytest.approx(exact, abs=1e-7)


@each
def test_draws_are_so_many_values_that_share_a_pairs_weight(kind: str):
    """A pair with two draws is two pairs of half the weight."""
    policy, reference = random_rows(3, draws=2, seed=7)
    together = loss_of(AOT(KINDS[kind]), scores_of(policy), scores_of(reference), feedback_of(*[pair()] * 3)).item()
    apart = [
        scores_of([[rows[side][draw]] for i in range(3) for draw in (0, 1) for side in (2 * i, 2 * i + 1)])
        for rows in (policy, reference)
    ]
    assert together == pytest.approx(loss_of(AOT(KINDS[kind]), *apart, feedback_of(*[pair(weight=0.5)] * 6)).item(), abs=1e-12)


@each
def test_at_the_reference_every_rank_meets_itself(kind: str):
    policy, _ = random_rows(5, draws=2, seed=8)
    loss = loss_of(
        AOT(KINDS[kind]), scores_of(policy), scores_of(policy), feedback_of(*(pair(weight=w) for w in (1, 2, 0.25, 1, 1)))
    )
    assert AOT(KINDS[kind]).value_at_reference == math.log(2)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


@each
def test_extreme_values_stay_finite_in_float32(kind: str):
    policy, reference = random_rows(4, seed=9, size=1e4)
    scores, frozen = scores_of(policy), scores_of(reference)
    scores.log_probs, frozen.log_probs = scores.log_probs.detach().float().requires_grad_(), frozen.log_probs.detach().float()
    loss = loss_of(AOT(KINDS[kind]), scores, frozen, feedback_of(*[pair()] * 4))
    assert torch.isfinite(loss) and torch.isfinite(gradient(loss, scores)).all()
