"""Verifiers, one table of kept and broken responses each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from polyalign.errors import RewardError
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign.rewards.config import RewardSlot
from polyalign.rewards.rules.answers import boxed, number
from polyalign.rewards.specs import RULES


@dataclass
class Clip:
    duration: float


def score(slot: dict[str, Any], outputs: Sequence[Any], prompt: str = "p", **fields: Any) -> list[float]:
    items = [Judged((Message(role="user", parts=prompt),), output, **fields) for output in outputs]  # type: ignore[arg-type]
    values: list[float] = RewardSlot.model_validate(slot).build().score(items)
    return values


TABLE: list[tuple[dict[str, Any], dict[Any, float]]] = [
    ({"name": "text_length", "maximum": 2}, {"a b": 1, "": 1, "a b c": 0}),
    ({"name": "text_length", "unit": "characters", "minimum": 2, "maximum": 3}, {"ab": 1, "a": 0, "abcd": 0}),
    ({"name": "text_length", "unit": "sentences", "minimum": 2}, {"One. Two.": 1, "One, two.": 0}),
    ({"name": "text_length", "unit": "lines", "maximum": 2}, {"a\n\nb\n": 1, "a\nb\nc": 0}),
    ({"name": "text_length", "unit": "bullets", "maximum": 9}, {"- a\n- b": 1, "prose": 0, "- a\nprose": 0}),
    ({"name": "keywords", "include": ["tea", "cup"], "exclude": ["milk"]}, {"Tea, a cup": 1, "tea": 2 / 3, "milk": 0}),
    ({"name": "keywords", "include": ["Tea"], "match_case": True}, {"Tea": 1, "tea": 0, "Teapot": 0}),
    ({"name": "letter_case", "case": "upper"}, {"A 1!": 1, "Ab": 0}),
    ({"name": "starts_with", "text": "Yes"}, {" Yes, ": 1, "yes": 0}),
    ({"name": "ends_with", "text": "."}, {"a. \n": 1, "a": 0}),
    ({"name": "regex", "pattern": r"\d{4}"}, {"in 1999": 1, "in 99": 0}),
    ({"name": "regex", "pattern": "a+", "whole": True, "ignore_case": True}, {"AA": 1, "AAb": 0}),
    ({"name": "regex", "pattern": "ß", "absent": True}, {"ss": 1, "ß": 0}),
    ({"name": "json"}, {"[1]": 1, "NaN": 0, '{"a": Infinity}': 0, "{a: 1}": 0, "[" * 100_000: 0}),
    ({"name": "json", "keys": ["a"]}, {'{"a": 0}': 1, '{"a": 0, "b": 0}': 0, '["a"]': 0}),
    (
        {"name": "json", "json_schema": {"type": "array", "items": {"type": "integer"}, "minItems": 1}},
        {"[1, 2]": 1, "[]": 0, "[1.5]": 0, "{}": 0},
    ),
    ({"name": "duration", "minimum": 1, "maximum": 2}, {}),
]


@pytest.mark.parametrize(("slot", "expected"), TABLE, ids=[json.dumps(slot)[:60] for slot, _ in TABLE])
def test_rules_by_hand(slot: dict[str, Any], expected: dict[str, float]) -> None:
    assert dict(zip(expected, score(slot, list(expected)), strict=True)) == pytest.approx(expected)


def test_media_rules_ask_the_medium_and_the_environment() -> None:
    assert score({"name": "duration", "minimum": 1, "maximum": 2}, [Clip(0.9), Clip(1.0), Clip(2.5)]) == [0.0, 1.0, 0.0]
    with pytest.raises(RewardError, match="no number of seconds in .duration of a str"):
        score({"name": "duration", "maximum": 2}, ["text"])
    assert score({"name": "success"}, [None], info={"success": True}) == [1.0]
    assert score({"name": "success", "key": "done"}, [None], info={"done": 0.25}) == [0.25]
    with pytest.raises(RewardError, match="found None under 'success'.*It reported: reward, steps"):
        score({"name": "success"}, [None], info={"steps": 3, "reward": 1})


def test_extractive_counts_runs_of_words_of_the_prompt() -> None:
    prompt = "The red fox jumps over the lazy dog"
    assert score({"name": "extractive"}, ["A red fox", "the dog", "?"], prompt) == pytest.approx([2 / 3, 1.0, 0.0])
    assert score({"name": "extractive", "n": 2}, ["red fox jumps high", "fox red"], prompt) == pytest.approx([2 / 3, 0.0])


def test_distinct_counts_what_siblings_do_not_say() -> None:
    """Pairs of words: "a b, b c" against "b c, c d": one of two is new to each; "x y" is new. One word has no pair."""
    assert score({"name": "distinct"}, ["a b c", "b c d", "x y", "z"]) == [0.5, 0.5, 1.0, 0.0]


ANSWERS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "1234.5",
        {},
        ["1,234.50", "so x = 1234.5.", "12 and then $1,234.50", r"\boxed{1234.5} of 99", "#### 1234.5\n(3 steps)", "2469/2"],
        ["1234", "12345", r"\boxed{7}, not 1234.5", "none", "#### 7\n1234.5", ""],
    ),
    ("-3/4", {}, [r"\boxed{-\frac{3}{4}}", "-0.75", r"$-\dfrac{3}{4}$", "The answer is −3/4 cups"], ["3/4", "-3", "-4/3"]),
    ("50%", {}, ["50 %", "it is 50", r"\boxed{50\%}"], ["0.5", "5"]),
    ("1e3", {}, ["1000", "1,000"], ["1e4"]),
    ("7", {"place": "boxed"}, [r"\boxed{7}", r"3 \boxed{\text{it is } 7}"], ["7", r"\boxed{7", r"\boxed{8} then 7"]),
    ("3.14159", {"tolerance": 0.001}, ["3.14"], ["3.1"]),
    (
        "B",
        {},
        [
            "B",
            "(b)",
            "**B.**",
            "The answer is B",
            "Answer: (B) because",
            r"\boxed{\text{B}}",
            "A is wrong, C too, so (B)",
            "B) tea",
        ],
        ["A", "C) not B)? no: (C)", "Because", "bath", "A (B) or (C)"],
    ),
    (
        "Paris",
        {},
        ["paris", ' "Paris." ', "The capital is nice.\nThe answer is Paris.", r"\boxed{\text{Paris}}"],
        ["Lyon", "Paris, France"],
    ),
    ("A", {"kind": "text"}, ["a"], ["(A) it is"]),
]


@pytest.mark.parametrize(("reference", "options", "right", "wrong"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_exact_answers(reference: str, options: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    found = score({"name": "exact_answer", **options}, [*right, *wrong], conditions={"answer": reference})
    assert dict(zip([*right, *wrong], found, strict=True)) == {**dict.fromkeys(right, 1.0), **dict.fromkeys(wrong, 0.0)}


def test_answers_are_read_not_run_and_cannot_hang() -> None:
    bombs = ["__import__('os').system('true')", "9" * 10_000, "1e999999999", "9**9**9**9", "1/0", r"\frac{1}{0}", "{" * 10_000]
    assert score({"name": "exact_answer"}, bombs, conditions={"answer": "1"}) == [0.0] * len(bombs)
    assert number("1/0") is None and number("9" * 500) is None
    assert boxed(r"\boxed{a{b}c} d}") == "a{b}c"


@given(st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=1000))
def test_a_number_is_read_as_the_value_it_writes(value: Fraction) -> None:
    sign, upper, lower = "-" if value < 0 else "", abs(value.numerator), value.denominator
    assert number(f"{sign}{upper}/{lower}") == value
    assert number(rf"{sign}\frac{{{upper}}}{{{lower}}}") == value
    assert number(f"{value.numerator:,}") == value.numerator


def test_an_unknown_answer_is_an_error_or_a_given_constant() -> None:
    with pytest.raises(RewardError, match="no condition 'answer'"):
        score({"name": "exact_answer"}, ["5"])
    assert score({"name": "exact_answer", "no_reference": 0.25}, ["5"]) == [0.25]
    with pytest.raises(RewardError, match="expects a number as the reference, but found 'tea'"):
        score({"name": "exact_answer", "kind": "number"}, ["5"], conditions={"answer": "tea"})


def order(first: str, second: str, said: str, group: str = "g") -> Judged:
    prompt = (Message(role="user", parts=f"Is {first} before or after {second}?"),)  # type: ignore[arg-type]
    return Judged(prompt, said, conditions={"first": first, "second": second}, group=group)


def test_only_the_group_that_contradicts_itself_is_flagged() -> None:
    """ACT's check: a < b, b < c, c < a cannot all be; a < b, b < c, c > a can."""
    wrong = [order("a", "b", "before"), order("b", "c", "It is before."), order("c", "a", "earlier")]
    right = [order("a", "b", "before", "h"), order("b", "c", "before", "h"), order("c", "a", "later", "h")]
    vague = [order("x", "y", "who knows", "i"), order("y", "z", "before", "i")]
    reward = RewardSlot.model_validate("consistent_order").build()
    assert reward.score([*wrong, *right, *vague]) == [0, 0, 0, 1, 1, 1, 0, 1]
    # two responses per prompt: the first of each form one set, the second another
    several = [order("a", "b", "before"), order("a", "b", "after"), order("b", "a", "before"), order("b", "a", "before")]
    assert reward.score(several) == [0, 1, 0, 1]
    with pytest.raises(RewardError, match="no condition 'second', group"):
        reward.score([Judged((), "before", conditions={"first": "a"})])


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ({"name": "text_length"}, "give minimum, maximum or both"),
        ({"name": "text_length", "minimum": 3, "maximum": 2}, "minimum=3 is above maximum=2"),
        ({"name": "keywords"}, "give include, exclude or both"),
        ({"name": "regex", "pattern": "("}, "not a regular expression"),
        ({"name": "duration", "minimum": -1}, "greater than or equal to 0"),
    ],
)
def test_options_that_make_no_rule_are_refused(slot: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardSlot.model_validate(slot)


def test_schemas_that_are_none_or_point_elsewhere_are_refused() -> None:
    with pytest.raises(RewardError, match="is not a JSON Schema"):
        score({"name": "json", "json_schema": {"type": "thing"}}, ["1"])
    with pytest.raises(RewardError, match="nothing is fetched"):
        score({"name": "json", "json_schema": {"$ref": "http://localhost:9/schema"}}, ["1"])


def test_text_rules_refuse_other_media_by_name() -> None:
    options: dict[str, dict[str, Any]] = {
        "text_length": {"maximum": 1},
        "keywords": {"include": ["a"]},
        "letter_case": {"case": "lower"},
        "starts_with": {"text": "a"},
        "ends_with": {"text": "a"},
        "regex": {"pattern": "a"},
    }
    for spec in RULES:
        if spec.inputs == ("text",):
            with pytest.raises(RewardError, match=f"'{spec.name}' judges text, but the response is a Clip"):
                score({"name": spec.name, **options.get(spec.name, {})}, [Clip(1)], conditions={"answer": "1"})
