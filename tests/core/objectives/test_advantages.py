"""Advantages against numpy, brute force and closed forms, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign.objectives import advantages as found

REAL = st.floats(-5, 5, allow_nan=False, width=32)
GROUPS = st.lists(st.lists(REAL, min_size=1, max_size=5), min_size=1, max_size=4)


def laid_out(groups: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards = torch.tensor([value for group in groups for value in group], dtype=torch.float64)
    return rewards, torch.tensor([number for number, group in enumerate(groups) for _ in group])


@given(GROUPS)
@settings(max_examples=50, deadline=None)
def test_group_advantages_are_numpys_group_by_group(groups: list[list[float]]) -> None:
    rewards, group = laid_out(groups)
    mean = [np.array(one) - np.mean(one) for one in groups]
    spread = [np.full(len(one), np.std(one, ddof=1) if len(one) > 1 else 0.0) for one in groups]
    torch.testing.assert_close(found.above_group_mean(rewards, group), torch.tensor(np.concatenate(mean)))
    torch.testing.assert_close(found.group_deviation(rewards, group), torch.tensor(np.concatenate(spread)), atol=1e-7, rtol=1e-7)


@given(GROUPS)
@settings(max_examples=50, deadline=None)
def test_leave_one_out_leaves_exactly_that_one_out(groups: list[list[float]]) -> None:
    rewards, group = laid_out(groups)
    expected = [
        own - np.mean([*one[:at], *one[at + 1 :]]) if len(one) > 1 else 0.0 for one in groups for at, own in enumerate(one)
    ]
    torch.testing.assert_close(found.leave_one_out(rewards, group), torch.tensor(expected, dtype=torch.float64))


def test_leave_one_out_is_the_group_advantage_times_k_over_k_minus_one() -> None:
    """The identity that makes RLOO and Dr. GRPO the same but for the step size."""
    rewards, group = laid_out([[1.0, 0.0, 0.5, 2.0]])
    torch.testing.assert_close(found.leave_one_out(rewards, group), found.above_group_mean(rewards, group) * 4 / 3)


def brute_force(paid: np.ndarray, values: np.ndarray, gamma: float, trace: float) -> np.ndarray:
    """The infinite sum of eq. 16, written out: A_t = sum_l (gamma lambda)^l delta_{t+l}."""
    steps = len(paid)
    after = np.append(values[1:], 0.0)
    delta = paid + gamma * after - values
    return np.array([sum((gamma * trace) ** (later - t) * delta[later] for later in range(t, steps)) for t in range(steps)])


@given(st.lists(st.tuples(REAL, REAL, st.booleans()), min_size=1, max_size=7), st.floats(0.1, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_gae_is_its_definition_and_steps_over_holes(rows: list[tuple[float, float, bool]], gamma: float, trace: float) -> None:
    """Decisions outside the mask are as if they were not there: their numbers, NaN included, reach nothing."""
    real = [(paid, value) for paid, value, kept in rows if kept]
    expected = brute_force(np.array([p for p, _ in real]), np.array([v for _, v in real]), gamma, trace) if real else []
    mask = torch.tensor([[kept for _, _, kept in rows]])
    hole = float("nan")
    paid = torch.tensor([[p if kept else hole for p, _, kept in rows]], dtype=torch.float64)
    values = torch.tensor([[v if kept else hole for _, v, kept in rows]], dtype=torch.float64)
    advantages = found.generalised(paid, values, mask, gamma, trace)
    torch.testing.assert_close(advantages[mask], torch.tensor(np.array(expected), dtype=torch.float64))
    assert (advantages[~mask] == 0).all()


def test_gae_with_gamma_and_lambda_one_is_reward_to_come_minus_value() -> None:
    paid = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    values = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(found.generalised(paid, values, mask, 1.0, 1.0), torch.tensor([[1.4, 0.8, 1.7]]).double())
    torch.testing.assert_close(found.to_come(paid, mask, 0.5), torch.tensor([[0.5, 0.0, 2.0]]).double())


def test_a_reward_falls_due_at_the_last_real_decision() -> None:
    mask = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])
    paid = found.spread_out(torch.tensor([1.0, 2.0, 3.0]), mask)
    assert paid.tolist() == [[0, 1, 0], [0, 0, 2], [0, 0, 0]]
    own = torch.tensor([[1.0, 2.0, 9.0]] * 3)
    assert found.spread_out(torch.tensor([1.0, 2.0, 3.0]), mask, own).tolist() == [[1, 2, 0], [1, 0, 9], [0, 0, 0]]


@given(st.lists(st.tuples(REAL, st.booleans()), min_size=3, max_size=9))
@settings(max_examples=40, deadline=None)
def test_whitening_is_numpys_and_the_same_in_two_processes(rows: list[tuple[float, bool]]) -> None:
    """Two processes that each hold a part, and add up through ``total``, whiten as one that holds all."""
    values, mask = torch.tensor([v for v, _ in rows]).double(), torch.tensor([kept for _, kept in rows])
    kept = values[mask].numpy()
    expected = torch.zeros_like(values)
    if len(kept):
        spread = np.std(kept, ddof=1) if len(kept) > 1 else 0.0
        expected[mask] = torch.tensor((kept - kept.mean()) / (spread + 1e-4))
    whole = found.whitened(values, mask)
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=1e-6)

    parts = [slice(0, 2), slice(2, None)]
    torch.testing.assert_close(torch.cat(in_two_processes(values, mask, parts)), whole)


def in_two_processes(values: torch.Tensor, mask: torch.Tensor, parts: list[slice]) -> list[torch.Tensor]:
    """Run the two parts in threads that meet at every total."""
    import threading

    barrier, board, results = threading.Barrier(2), [None, None], [None, None]

    def work(rank: int) -> None:
        def total(tensor: torch.Tensor) -> torch.Tensor:
            board[rank] = tensor
            barrier.wait()
            summed = board[0] + board[1]
            barrier.wait()
            return summed

        results[rank] = found.whitened(values[parts[rank]], mask[parts[rank]], total)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return results  # type: ignore[return-value]


def test_nothing_at_all_has_no_advantage() -> None:
    empty = torch.zeros(0)
    assert found.leave_one_out(empty, torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert found.deviation(torch.tensor([3.0])).item() == 0
    assert found.generalised(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 1.0, 1.0).shape == (2, 0)
    assert found.deviation(torch.tensor([1.0, 3.0])).item() == pytest.approx(2**0.5)
