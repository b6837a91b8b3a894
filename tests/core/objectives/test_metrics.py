"""Preference metrics by hand."""

from __future__ import annotations

import pytest
import torch
from toys.scored import example, feedback_of, grid, pair, scores_of

from polyalign.objectives.metrics import preference_metrics

POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5]]]  # log-probabilities -3 and -2
REFERENCE = [[[-1.5, -2.5]], [[-1.0, -0.5]]]  # -4 and -1.5: log-ratios 1 and -0.5


def means(*args, **kwargs) -> dict[str, float]:
    return {name: (term.sum / term.weight).item() for name, term in preference_metrics(*args, **kwargs).items() if term.weight}


def test_pair_metrics_by_hand():
    assert means(scores_of(POLICY), scores_of(REFERENCE), feedback_of(pair())) == pytest.approx(
        {
            "margin": 1.5,
            "accuracy": 1.0,
            "chosen_score": -3.0,
            "rejected_score": -2.0,
            "chosen_log_ratio": 1.0,
            "rejected_log_ratio": -0.5,
            "log_ratio": 0.25,
            "drift": 0.75,
        }
    )


def test_without_a_reference_the_reward_is_the_log_probability():
    assert means(scores_of(POLICY), None, feedback_of(pair())) == pytest.approx(
        {"margin": -1.0, "accuracy": 0.0, "chosen_score": -3.0, "rejected_score": -2.0}
    )


def test_ties_count_half_and_edges_by_weight():
    """Right (weight 1), tied (weight 2), wrong (weight 1): (1 + 1 + 0) / 4."""
    values = [[[1.0]], [[0.0]], [[0.0]], [[0.0]], [[0.0]], [[1.0]]]
    metrics = means(scores_of(values), scores_of([[[0.0]]] * 6), feedback_of(pair(), pair(weight=2.0), pair()))
    assert metrics["accuracy"] == pytest.approx(0.5)
    assert metrics["margin"] == pytest.approx(0.0)


def test_draws_are_averaged_before_the_comparison():
    """Margins +3 and -1 over two draws: the mean +1 is right."""
    metrics = means(scores_of([[[3.0], [-1.0]], [[0.0], [0.0]]]), scores_of([[[0.0], [0.0]]] * 2), feedback_of(pair()))
    assert (metrics["margin"], metrics["accuracy"]) == (1.0, 1.0)


def test_labelled_samples_are_reported_per_side_and_mismatched_ones_not_at_all():
    scores, reference = scores_of([[[1.0]], [[-2.0]], [[99.0]]]), scores_of([[[0.0]]] * 3)
    metrics = means(scores, reference, feedback_of(example(3, labels=(1, -1, 0), mismatched=(2,))))
    assert metrics == pytest.approx({"log_ratio": -0.5, "drift": 1.5, "desirable_log_ratio": 1.0, "undesirable_log_ratio": -2.0})


def test_column_edges_are_left_out():
    metrics = preference_metrics(scores_of([[[0.0]]] * 4), None, feedback_of(grid()))
    assert metrics["accuracy"].weight.item() == 2.0


def test_names_do_not_depend_on_the_batch_and_nothing_is_nan():
    empty = preference_metrics(scores_of(POLICY), scores_of(REFERENCE), feedback_of(example(2)))
    full = preference_metrics(scores_of(POLICY), scores_of(REFERENCE), feedback_of(pair()))
    assert set(empty) == set(full)
    assert all(torch.isfinite(term.sum) and not term.sum.requires_grad for term in empty.values())
