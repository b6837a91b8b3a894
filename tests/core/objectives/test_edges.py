"""Selecting edges keeps every field in step."""

from __future__ import annotations

import torch
from toys.scored import example, feedback_of

from polyalign.records.samples import Edge


def test_where_keeps_the_chosen_edges_and_all_their_fields():
    edges = feedback_of(
        example(
            3,
            [
                Edge(0, 1, 0.5, 0.1, "style", "ann", 0),
                Edge(1, 2, 2.0, 0.2, "truth", None, 1, "prompt"),
                Edge(2, 0, 3.0, 0.3, "overall", "bob", 2),
            ],
        )
    ).edges
    kept = edges.where(torch.tensor([True, False, True]))
    assert (len(kept), kept.better.tolist(), kept.worse.tolist()) == (2, [0, 2], [1, 0])
    assert (kept.weight.tolist(), kept.ranking.tolist(), kept.columns.tolist()) == ([0.5, 3.0], [0, 2], [False, False])
    torch.testing.assert_close(kept.margin, torch.tensor([0.1, 0.3]))
    assert (kept.aspect, kept.annotator) == (("style", "overall"), ("ann", "bob"))


def test_where_of_no_edges_is_no_edges():
    edges = feedback_of(example(2)).edges
    assert len(edges.where(~edges.columns)) == 0
