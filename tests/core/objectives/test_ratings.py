"""Margins and weights that pairwise objectives make of ratings, strengths and aspects."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from toys.scored import example, feedback_of, loss_of, scores_of

from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.config import (
    AOTConfig,
    CPOConfig,
    DPOConfig,
    EdgeConfig,
    InstructEngineConfig,
    ORPOConfig,
    SimPOConfig,
)
from polyalign.objectives.instruct_engine import InstructEngine
from polyalign.objectives.margins import columns, rows
from polyalign.objectives.odds_ratio import ORPO
from polyalign.objectives.optimal_transport import AOT
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.reference_free import CPO, SimPO
from polyalign.records.samples import Edge, Rated


def rated(edges: list[Edge], *ratings: Rated, samples: int = 2) -> FeedbackTensors:
    return feedback_of(replace(example(samples, edges), ratings=ratings))


def margins_of(feedback: FeedbackTensors, **options: object) -> list[float]:
    return rows(feedback, EdgeConfig(**options)).margin.tolist()


def weights_of(feedback: FeedbackTensors, **options: object) -> list[float]:
    return rows(feedback, EdgeConfig(**options)).weight.tolist()


PAIR = [Edge(0, 1, weight=2.0, margin=0.25)]


def test_by_default_edges_stay_as_the_record_has_them():
    feedback = rated(PAIR, Rated(0, 1.0), Rated(1, 0.0))
    assert (margins_of(feedback), weights_of(feedback)) == ([0.25], [2.0])


def test_a_margin_is_the_scaled_difference_of_the_mean_ratings():
    """Two annotators give the better response 1.0 and 0.5, mean 0.75; the worse one has 0.25: 3 * 0.5."""
    feedback = rated(PAIR, Rated(0, 1.0, annotator="ann"), Rated(0, 0.5, annotator="bob"), Rated(1, 0.25))
    assert margins_of(feedback, margin_from="ratings", margin_scale=3.0) == [1.5]
    assert weights_of(feedback, margin_from="ratings") == [2.0]


def test_a_weight_can_be_the_difference_instead():
    feedback = rated(PAIR, Rated(0, 0.75), Rated(1, 0.25))
    assert (weights_of(feedback, weight_from="ratings"), margins_of(feedback, weight_from="ratings")) == ([1.0], [0.25])


def test_ratings_on_the_edges_own_aspect_come_first():
    edges = [Edge(0, 1, aspect="truth"), Edge(0, 1, aspect="overall")]
    feedback = rated(edges, Rated(0, 1.0, "truth"), Rated(1, 0.0, "truth"), Rated(0, 0.5, "style"), Rated(1, 0.25, "style"))
    assert margins_of(feedback, margin_from="ratings") == [1.0, (1.0 + 0.25) / 2]  # nobody rated "overall": the mean of both


def test_other_aspects_are_averaged_by_their_weights_over_those_that_both_sides_have():
    ratings = (
        Rated(0, 1.0, "truth"),
        Rated(1, 0.5, "truth"),
        Rated(0, 0.5, "style"),
        Rated(1, 0.5, "style"),
        Rated(0, 1.0, "wit"),
    )
    feedback = rated([Edge(0, 1)], *ratings)
    assert margins_of(feedback, margin_from="ratings", aspect_weights={"truth": 3.0}) == [pytest.approx(0.5 * 3 / 4)]
    assert margins_of(feedback, margin_from="ratings", aspect_weights={"truth": 0.0, "style": 0.0, "wit": 9.0}) == [0.0]


def test_an_edge_without_both_ratings_keeps_what_it_had():
    feedback = rated([*PAIR, Edge(2, 1, margin=0.5)], Rated(0, 1.0), Rated(2, 1.0), samples=3)
    assert margins_of(feedback, margin_from="ratings") == [0.25, 0.5]
    assert weights_of(feedback, weight_from="ratings") == [2.0, 1.0]


def test_ratings_that_contradict_the_preference_count_as_equal():
    feedback = rated(PAIR, Rated(0, 0.0), Rated(1, 1.0))
    assert margins_of(feedback, margin_from="ratings") == [0.0]
    assert weights_of(feedback, weight_from="ratings") == [0.0]


def test_strength_asks_for_a_margin_and_then_is_no_weight():
    feedback = rated([Edge(0, 1, weight=2.0), Edge(1, 0, weight=0.0)])
    assert margins_of(feedback, margin_from="strength", margin_scale=0.5) == [1.0, 0.0]
    assert weights_of(feedback, margin_from="strength") == [1.0, 0.0]


def test_aspects_weigh_their_edges():
    feedback = rated([Edge(0, 1, 2.0, aspect="hallucination"), Edge(0, 1, aspect="style"), Edge(1, 0, aspect="length")])
    assert weights_of(feedback, aspect_weights={"hallucination": 2.0, "length": 0.0}) == [4.0, 1.0, 0.0]


def test_columns_are_refined_alike():
    feedback = rated([Edge(0, 1, contrast="prompt"), Edge(0, 1)], Rated(0, 1.0), Rated(1, 0.5))
    assert columns(feedback, EdgeConfig(margin_from="ratings")).margin.tolist() == [0.5]


def test_no_edges_and_no_ratings_are_fine():
    empty = rated([], samples=2)
    assert margins_of(empty, margin_from="ratings", weight_from="ratings", aspect_weights={"style": 2.0}) == []
    assert margins_of(rated(PAIR), margin_from="ratings") == [0.25]


SCORES, REFERENCE = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]]], [[[-1.5, -2.1]], [[-1.2, -0.7, -1.4]]]
OBJECTIVES = {
    "dpo": lambda **options: DPO(DPOConfig(**options)),
    "aot": lambda **options: AOT(AOTConfig(**options)),
    "simpo": lambda **options: SimPO(SimPOConfig(**options)),
    "cpo": lambda **options: CPO(CPOConfig(**options)),
    "orpo": lambda **options: ORPO(ORPOConfig(**options)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_pairwise_objective_takes_margins_from_ratings(name: str):
    """The same loss as that of data whose edges carry the margin 2 * (0.75 - 0.25)."""
    feedback = rated([Edge(0, 1)], Rated(0, 0.75), Rated(1, 0.25))
    objective = OBJECTIVES[name](margin_from="ratings", margin_scale=2.0)
    assert "ratings" in objective.needs and "ratings" not in OBJECTIVES[name]().needs
    found = loss_of(objective, scores_of(SCORES), scores_of(REFERENCE), feedback)
    expected = loss_of(OBJECTIVES[name](), scores_of(SCORES), scores_of(REFERENCE), rated([Edge(0, 1, margin=1.0)]))
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    unasked = loss_of(OBJECTIVES[name](), scores_of(SCORES), scores_of(REFERENCE), feedback)
    assert abs(found.item() - unasked.item()) > 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_pairwise_objective_weighs_aspects(name: str):
    """Two edges of opposite aspect weights 1 and 0: the loss of the first alone, likelihood terms included."""
    edges = [Edge(0, 1, aspect="truth"), Edge(1, 0, aspect="style")]
    found = loss_of(OBJECTIVES[name](aspect_weights={"style": 0.0}), scores_of(SCORES), scores_of(REFERENCE), rated(edges))
    expected = loss_of(OBJECTIVES[name](), scores_of(SCORES), scores_of(REFERENCE), rated(edges[:1]))
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)


def test_a_grid_takes_margins_from_ratings():
    """At the reference each row costs -log sigma(-0.5) where its own response is rated 0.5 higher."""
    ratings = (Rated(0, 1.0), Rated(1, 0.5), Rated(3, 0.75), Rated(2, 0.25))
    feedback = rated([Edge(0, 1), Edge(3, 2)], *ratings, samples=4)
    same = [[[-1.0]]] * 4
    loss = loss_of(InstructEngine(InstructEngineConfig(margin_from="ratings")), scores_of(same), scores_of(same), feedback)
    assert loss.item() == pytest.approx(-2 * math.log(1 / (1 + math.exp(0.5))), abs=1e-6)


def test_weights_are_known_before_the_forward_pass():
    feedback = rated([Edge(0, 1)], Rated(0, 0.75), Rated(1, 0.25))
    scores = scores_of(SCORES)
    weights = DPO(DPOConfig(weight_from="ratings")).weights(scores.mask, scores.kind, feedback)
    torch.testing.assert_close(weights["preference"], torch.tensor(0.5))


def test_strength_as_margin_leaves_nothing_for_ratings_to_weigh():
    with pytest.raises(ValidationError, match="drop one"):
        EdgeConfig(margin_from="strength", weight_from="ratings")
