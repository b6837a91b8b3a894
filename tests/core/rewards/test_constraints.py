"""Checkable instructions: read back from a prompt, kept or broken by an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.errors import RewardError
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign.rewards.rules.config import ConstraintsConfig
from polyalign.rewards.rules.constraints import ConstraintsReward
from polyalign.rewards.rules.sentences import RULES, Constraint, read_constraints
from polyalign.rewards.rules.text import sentences, words

ANSWERS = [  # rule, arguments, answers that keep it, answers that break it
    ("at_most_words", ("3",), ["One two three.", "a-b c's d"], ["One two three four"]),
    ("at_least_words", ("3",), ["One two three.", "1 2 3 4"], ["One two - !"]),
    ("sentences", ("2",), ["One. Two!", 'He said "no." Then left', "Really? Yes."], ["One.", "One. Two. Three.", "Pi is 3.14"]),
    ("include", ("hot water",), ["Use Hot Water now"], ["Use hot, water", "hot waters"]),
    ("exclude", ("cat",), ["A catalogue"], ["A CAT!", "cat"]),
    ("lowercase", (), ["no capitals, 3 of them"], ["One capital"]),
    ("uppercase", (), ["LOUD: 3!"], ["LOUd"]),
    ("no_commas", (), ["a; b"], ["a, b"]),
    ("bullets", ("2",), ["- a\n- b", "- a\n\n- b\n"], ["- a", "- a\n- b\n- c", "Here:\n- a\n- b", "-a\n-b", "* a\n* b"]),
    (
        "json",
        ("a", "b"),
        ['{"a": 1, "b": []}', ' {"b": 0, "a": 0}\n'],
        ['{"a": 1}', '{"a": 1, "b": 2, "c": 3}', "a: 1, b: 2", '["a", "b"]', 'So: {"a":1,"b":2}'],
    ),
    ("starts_with", ("In short:",), ["In short: yes", "  In short: yes"], ["in short: yes", "Yes. In short: yes"]),
    ("ends_with", ("Bye.",), ["Well. Bye.\n"], ["Bye. Then", "Bye"]),
]


@pytest.mark.parametrize(("rule", "arguments", "kept", "broken"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_each_rule_tells_kept_from_broken(rule: str, arguments: tuple[str, ...], kept: list[str], broken: list[str]) -> None:
    constraint = Constraint(rule, arguments)
    assert [answer for answer in kept if not constraint.holds(answer)] == []
    assert [answer for answer in broken if constraint.holds(answer)] == []
    assert not constraint.holds(" \n")
    assert read_constraints(f"Tell me. {constraint.sentence()} Thanks") == (constraint,)


def test_every_rule_is_covered_above() -> None:
    assert {row[0] for row in ANSWERS} == set(RULES)


TEXT = st.text(st.characters(exclude_characters='"', exclude_categories=["Cs"]), min_size=1)


@given(st.sampled_from(sorted(RULES)), st.integers(0, 999), TEXT, TEXT)
def test_a_sentence_reads_back_as_the_constraint_that_wrote_it(rule: str, count: int, first: str, second: str) -> None:
    written = RULES[rule].sentence
    arguments = (str(count),) if "{count}" in written else (first, second)[: written.count("{text}")]
    constraint = Constraint(rule, arguments)
    assert constraint in read_constraints(constraint.sentence())


def test_words_and_sentences_are_counted_as_people_do() -> None:
    assert words("It's a well-known 3-step plan: go!") == ["It's", "a", "well-known", "3-step", "plan", "go"]
    assert [sentences(text) for text in ("", "Go", "Go! Now?", "3.14 is pi.", "(Yes.) No.", "Wait... what")] == [0, 1, 2, 1, 2, 2]


def judged(prompt: str, answer: str) -> Judged:
    earlier = [Message(role="user", parts="Do not use commas."), Message(role="assistant", parts="ok")]  # type: ignore[arg-type]
    return Judged((*earlier, Message(role="user", parts=prompt)), answer)  # type: ignore[arg-type]


def test_the_reward_is_the_share_kept_in_the_last_user_message_or_all_or_nothing() -> None:
    prompt = "What is tea? Use at most 2 words. Write in lowercase letters only."
    items = [judged(prompt, "a drink"), judged(prompt, "A drink"), judged(prompt, "A hot drink"), judged("What is tea?", "a, b")]
    assert ConstraintsReward().score(items) == [1.0, 0.5, 0.0, 1.0]
    assert ConstraintsReward(ConstraintsConfig(credit="all")).score(items) == [1.0, 0.0, 0.0, 1.0]


def test_the_reward_refuses_what_is_not_text() -> None:
    with pytest.raises(RewardError, match="bytes"):
        ConstraintsReward().score([Judged(judged("Do not use commas.", "").prompt, b"x")])
