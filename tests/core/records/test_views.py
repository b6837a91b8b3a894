"""What each view makes of a record, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from toys.records import any_records, grid, plain

from polyalign.records.samples import Edge, Example, Labelled, Ranked, Rated
from polyalign.records.schema import Comparison, Critique, Rating, Record, Refinement, Segment, text_of
from polyalign.records.views import VIEWS, about


def ranked(*ranking: object, **fields: object) -> Comparison:
    return Comparison(ranking=ranking, **fields)


def answers(example: Example) -> list[str]:
    return [text_of(sample.response) for sample in example.samples]


def cells(example: Example) -> list[tuple[str, str]]:
    return [(text_of(sample.prompt[-1].parts), text_of(sample.response)) for sample in example.samples]


def test_pairs_gives_every_strict_pair_and_no_tie() -> None:
    """Ranking 2 > {0, 1} > 4 with 3 incomparable: five strict pairs, the tie 0-1 and candidate 3 give none."""
    record = plain(
        "r", "p", *"abcde", feedback=(ranked(2, [0, 1], 4, incomparable=(3,), strength=0.5, aspect="taste", annotator="ann"),)
    )
    examples = VIEWS["pairs"](record, None)
    assert [answers(example) for example in examples] == [["c", "a"], ["c", "b"], ["c", "e"], ["a", "e"], ["b", "e"]]
    assert {example.edges for example in examples} == {(Edge(0, 1, weight=0.5, aspect="taste", annotator="ann"),)}
    assert [sample.id for sample in examples[3].samples] == ["r#0", "r#4"]


def test_pairs_of_two_comparisons_are_all_kept() -> None:
    record = plain("r", "p", "a", "b", feedback=(ranked(0, 1, annotator="x"), ranked(1, 0, annotator="y"), ranked([0, 1])))
    assert [(answers(e), e.edges[0].annotator) for e in VIEWS["pairs"](record, None)] == [(["a", "b"], "x"), (["b", "a"], "y")]


def test_pairs_mark_one_answer_under_two_prompts_and_drop_what_shares_nothing() -> None:
    record = grid("r", [("x1", "y1"), ("x2", "y1"), ("x2", "y2")], ranked(0, 1, 2))
    found = [(cells(example), example.edges[0].contrast) for example in VIEWS["pairs"](record, None)]
    assert found == [([("x1", "y1"), ("x2", "y1")], "prompt"), ([("x2", "y1"), ("x2", "y2")], "response")]


def test_rankings_keep_ranks_ties_and_edges_of_each_comparison() -> None:
    record = plain("r", "p", *"abcd", feedback=(ranked(2, [3, 0], incomparable=(1,)), ranked([0, 1]), ranked(3)))
    first, tie = VIEWS["rankings"](record, None)
    assert answers(first) == ["a", "c", "d"]
    assert first.rankings == (Ranked(0, 1), Ranked(1, 0), Ranked(2, 1))
    assert first.edges == (Edge(1, 2), Edge(1, 0))
    assert (answers(tie), tie.rankings, tie.edges) == (["a", "b"], (Ranked(0, 0), Ranked(1, 0)), ())


def test_rankings_over_several_prompts_and_answers_at_once_are_no_rankings() -> None:
    mixed = grid("r", [("x1", "y1"), ("x1", "y2"), ("x2", "y2")], ranked(0, 1, 2))
    column = grid("c", [("x1", "y1"), ("x2", "y1"), ("x3", "y1")], ranked(0, [1, 2]))
    assert VIEWS["rankings"](mixed, None) == []
    assert {edge.contrast for edge in VIEWS["rankings"](column, None)[0].edges} == {"prompt"}


def test_unpaired_labels_top_and_bottom_tiers_only() -> None:
    record = plain("r", "p", *"abcd", feedback=(ranked([0, 1], 2, 3),))
    found = [(answers(example), example.labels) for example in VIEWS["unpaired"](record, None)]
    assert found == [(["a"], (1,)), (["b"], (1,)), (["d"], (-1,))]


def test_unpaired_sums_votes_and_an_even_vote_labels_nothing() -> None:
    votes = (ranked(0, 1, 2), ranked(1, 0, 2), ranked(0, 2, 1))  # a: +2, b: +1 -1, c: -2
    found = VIEWS["unpaired"](plain("r", "p", *"abc", feedback=votes), None)
    assert [(answers(example), example.labels) for example in found] == [(["a"], (1,)), (["c"], (-1,))]


def test_unpaired_falls_back_on_ratings_about_the_middle_of_the_scale() -> None:
    """On 1..5 the middle is 3: 3.5 is above, 3 is on it, 1 and 4 average 2.5, below."""
    scores = [(0, 3.5), (1, 3.0), (2, 1.0), (2, 4.0)]
    feedback = tuple(Rating(candidate=candidate, value=value, scale=(1, 5)) for candidate, value in scores)
    found = VIEWS["unpaired"](plain("r", "p", *"abc", feedback=feedback), None)
    assert [(answers(example), example.labels) for example in found] == [(["a"], (1,)), (["c"], (-1,))]
    assert found[1].ratings == (Rated(0, 0.0), Rated(0, 0.75))


def test_unpaired_believes_comparisons_before_ratings() -> None:
    feedback = (ranked(0, 1), Rating(candidate=0, value=0.1), Rating(candidate=2, value=0.9))
    found = VIEWS["unpaired"](plain("r", "p", *"abc", feedback=feedback), None)
    assert [(answers(example), example.labels) for example in found] == [(["a"], (1,)), (["b"], (-1,)), (["c"], (1,))]


GRID = [("x1", "y1"), ("x1", "y2"), ("x2", "y1"), ("x2", "y2")]
ROWS = (Edge(0, 1, ranking=0), Edge(3, 2, ranking=1))
COLUMNS = (Edge(0, 2, ranking=2, contrast="prompt"), Edge(3, 1, ranking=3, contrast="prompt"))


def test_grid_of_two_matched_candidates_is_completed_to_four_cells() -> None:
    (example,) = VIEWS["grids"](grid("r", [("x1", "y1"), ("x2", "y2")]), None)
    assert cells(example) == GRID
    assert example.edges == ROWS + COLUMNS
    assert {sample.draw_key for sample in example.samples} == {"r"}
    assert len({sample.id for sample in example.samples}) == 4


def test_grid_rows_are_decided_by_comparisons_when_all_cells_are_listed() -> None:
    listed = [("x1", "y1"), ("x1", "y2"), ("x2", "y2"), ("x2", "y1")]
    (example,) = VIEWS["grids"](grid("r", listed, ranked(0, 1, strength=3.0), ranked(2, 3)), None)
    assert cells(example) == GRID
    assert example.edges == (Edge(0, 1, weight=3.0, ranking=0), *ROWS[1:], *COLUMNS)


def test_grid_comparisons_can_turn_the_grid_round() -> None:
    """Under x1 they prefer y2 and under x2 y1, so y2 is x1's own answer."""
    (example,) = VIEWS["grids"](grid("r", GRID, ranked(1, 0), ranked(2, 3)), None)
    assert cells(example) == [("x1", "y2"), ("x1", "y1"), ("x2", "y2"), ("x2", "y1")]
    assert example.edges == ROWS + COLUMNS


def test_grid_columns_are_decided_by_comparisons_of_one_answer_under_two_prompts() -> None:
    same_answer = ranked(2, 0, annotator="z")  # y1 suits x2 better than x1
    tied = ranked([1, 3])  # y2 suits both alike
    (example,) = VIEWS["grids"](grid("r", GRID, ranked(0, 1), ranked(3, 2), same_answer, tied), None)
    assert example.edges == (*ROWS, Edge(2, 0, ranking=2, contrast="prompt", annotator="z"))


def test_grid_with_an_undecided_row_is_no_grid() -> None:
    assert VIEWS["grids"](grid("r", GRID), None) == []
    assert VIEWS["grids"](grid("r", GRID, ranked(0, 1)), None) == []
    assert VIEWS["grids"](grid("r", GRID, ranked(0, 1), ranked([2, 3])), None) == []


def test_grid_needs_two_prompts_with_different_answers() -> None:
    assert VIEWS["grids"](plain("r", "p", "a", "b", feedback=(ranked(0, 1),)), None) == []
    assert VIEWS["grids"](grid("r", [("x1", "y"), ("x2", "y")]), None) == []


def test_three_matched_candidates_give_three_grids() -> None:
    examples = VIEWS["grids"](grid("r", [("x1", "y1"), ("x2", "y2"), ("x3", "y3")]), None)
    assert [(cells(example)[0], cells(example)[3]) for example in examples] == [
        (("x1", "y1"), ("x2", "y2")),
        (("x1", "y1"), ("x3", "y3")),
        (("x2", "y2"), ("x3", "y3")),
    ]


@pytest.mark.parametrize(
    "record, expected",
    [
        (plain("r", "p", "a"), ["a"]),
        (plain("r", "p", "a", "b"), []),
        (plain("r", "p", *"abc", feedback=(ranked([0, 2], 1),)), ["a", "c"]),
        (plain("r", "p", "a", feedback=(Rating(candidate=0, value=0.0),)), []),
        (plain("r", "p", "a", feedback=(Rating(candidate=0, value=1.0),)), ["a"]),
        (plain("r", "p", "a", "b", feedback=(Refinement(before=0, after=1),)), ["b"]),
        (plain("r", "p", *"abc", feedback=(Refinement(before=0, after=1), Refinement(before=1, after=2))), ["c"]),
        (plain("r", "p", "a", feedback=(Critique(candidate=0, parts="dull"),)), ["a"]),
        (grid("r", [("x1", "y1"), ("x2", "y2")]), ["y1", "y2"]),
        (grid("r", GRID, ranked(0, 1), ranked(3, 2)), ["y1", "y2"]),
    ],
)
def test_sft_imitates_the_best_or_the_only_answers(record: Record, expected: list[str]) -> None:
    examples = VIEWS["sft"](record, None)
    assert [answers(example) for example in examples] == [[answer] for answer in expected]
    assert all(example.samples[0].role == "response" and example.edges == () for example in examples)


def test_ratings_and_segments_come_along_with_their_sample() -> None:
    feedback = (
        ranked(1, 0),
        Rating(candidate=0, value=2, scale=(0, 8), aspect="motion", annotator="k"),
        Segment(candidate=1, start=1, end=2.5, unit="seconds", value=-1),
        Rating(candidate=2, value=1),
    )
    (example,) = VIEWS["pairs"](plain("r", "p", *"abc", feedback=feedback), None)
    assert answers(example) == ["b", "a"]
    assert example.ratings == (Rated(1, 0.25, "motion", "k"),)
    assert example.segments == (Labelled(0, 1.0, 2.5, "seconds", -1.0),)


def test_rated_gives_each_response_with_a_rating_or_a_labelled_stretch_once_good_or_bad() -> None:
    """Two ratings of candidate 2 are one example; 1 has a segment only; 3 is compared and not rated."""
    feedback = (
        Rating(candidate=2, value=1, scale=(1, 5)),
        Rating(candidate=2, value=5, scale=(1, 5), aspect="style"),
        Rating(candidate=0, value=4, scale=(1, 5)),
        Segment(candidate=1, start=0, end=2, unit="tokens", value=-1),
        ranked(3, 0),
    )
    examples = VIEWS["rated"](plain("r", "p", *"abcd", feedback=feedback), None)
    assert [answers(example) for example in examples] == [["a"], ["b"], ["c"]]
    assert [example.ratings for example in examples] == [(Rated(0, 0.75),), (), (Rated(0, 0.0), Rated(0, 1.0, "style"))]
    assert examples[1].segments == (Labelled(0, 0, 2, "tokens", -1),)
    assert not any(example.edges for example in examples)


def test_conditions_of_the_record_hold_for_candidates_unless_they_say_otherwise() -> None:
    record = Record(
        id="r",
        prompt="p",
        candidates=[{"parts": "a", "conditions": {"level": 2}}, {"parts": "b"}],
        conditions={"level": 1, "style": "s"},
        feedback=[ranked(0, 1)],
    )
    (example,) = VIEWS["pairs"](record, None)
    assert [dict(sample.conditions) for sample in example.samples] == [{"level": 2, "style": "s"}, {"level": 1, "style": "s"}]


def test_aspect_keeps_only_its_feedback() -> None:
    feedback = (ranked(0, 1, aspect="taste"), ranked(1, 0), Refinement(before=0, after=1))
    record = plain("r", "p", "a", "b", feedback=feedback)
    assert about(record, "taste").feedback == (feedback[0], feedback[2])
    assert about(record, None) is record


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_records())
def test_every_view_of_any_record_is_well_formed_and_repeatable(record: Record) -> None:
    for name, view in VIEWS.items():
        examples = view(record, None)
        assert examples == view(record, None)
        for example in examples:
            count = range(len(example.samples))
            assert {sample.draw_key for sample in example.samples} == {record.id}, name
            assert all(edge.better in count and edge.worse in count and edge.better != edge.worse for edge in example.edges)
            assert all(0 <= rated.value <= 1 and rated.sample in count for rated in example.ratings)
            assert all(labelled.sample in count for labelled in example.segments)
            assert all(entry.sample in count for entry in example.rankings)
            assert len(example.labels) in (0, len(example.samples))


def test_self_samples_stand_over_each_undesirable_answer_to_their_prompt() -> None:
    """0 > 1; 2, 3 and 4 are the policy's own, and 4 was found bad: two lists, over 1 and over 4."""
    made = [("good", None), ("bad", "gpt"), ("own a", "self"), ("own b", "self:runs/x"), ("own bad", "self")]
    listed = [{"parts": text, "producer": producer} for text, producer in made]
    record = Record(id="r", prompt="p", candidates=listed, feedback=(ranked(0, 1), Rating(candidate=4, value=0.1)))
    first, second = VIEWS["self_samples"](record, None)
    assert (answers(first), answers(second)) == (["bad", "own a", "own b"], ["own bad", "own a", "own b"])
    assert [sample.role for sample in first.samples] == ["response", "self_sample", "self_sample"]
    assert (first.edges, first.labels) == ((Edge(1, 0), Edge(2, 0)), (-1, 0, 0))
    assert VIEWS["self_samples"](plain("r", "p", "a", "b", feedback=(ranked(0, 1),)), None) == []


def test_the_policys_own_answers_are_not_imitated_unless_they_were_judged() -> None:
    listed = [{"parts": "given"}, {"parts": "own", "producer": "self"}]
    unjudged = Record(id="r", prompt="p", candidates=listed)
    assert [answers(example) for example in VIEWS["sft"](unjudged, None)] == [["given"]]
    judged = unjudged.model_copy(update={"feedback": (ranked(1, 0),)})
    assert [answers(example) for example in VIEWS["sft"](judged, None)] == [["own"]]


def test_rankings_carry_the_comparisons_strength_and_contrast() -> None:
    (one,) = VIEWS["rankings"](plain("r", "p", "a", "b", feedback=(ranked(1, 0, strength=0.5),)), None)
    assert one.rankings == (Ranked(0, 1, 0, 0.5), Ranked(1, 0, 0, 0.5))
    (across,) = VIEWS["rankings"](grid("c", [("x1", "y1"), ("x2", "y1")], ranked(0, 1)), None)
    assert {item.contrast for item in across.rankings} == {"prompt"}
