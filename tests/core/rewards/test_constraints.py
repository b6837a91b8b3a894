"""Checkable instructions: read back from a prompt, kept or broken by an answer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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


def listed(*terms: dict[str, Any], output: Any = "a b c", weight_all: str = "share") -> float:
    item = Judged(judged("?", "").prompt, output, conditions={"constraints": json.dumps(terms)})
    (value,) = ConstraintsReward(ConstraintsConfig(credit=weight_all)).score([item])  # type: ignore[arg-type]
    return value


SHORT, LOUD = {"name": "text_length", "maximum": 5}, {"name": "letter_case", "case": "upper"}


def test_the_rate_of_a_record_weighs_its_constraints() -> None:
    """ACT's hand example: weights 3 (kept) and 1 (broken): 3 / 4. A rule on [0, 1] counts for its share."""
    assert listed(SHORT | {"weight": 3}, LOUD) == 0.75
    assert listed(SHORT, LOUD, weight_all="all") == 0.0
    assert listed(SHORT, {"name": "keywords", "include": ["a", "z"]}) == 0.75
    assert listed(SHORT, LOUD, output="") == 0.0
    assert listed(SHORT, SHORT, LOUD) == 0.5


def test_constraints_of_recipe_record_and_prompt_add_up_and_speak_of_any_modality() -> None:
    class Clip:
        duration = 3.0

    config = ConstraintsConfig.model_validate({"constraints": [{"name": "duration", "maximum": 2}]})
    own = json.dumps([{"name": "duration", "minimum": 1}])
    prompt = judged("Play.", "").prompt
    scored = ConstraintsReward(config).evaluate([Judged(prompt, Clip(), conditions={"constraints": own}), Judged(prompt, Clip())])
    assert scored.values == [0.5, 0.0]
    assert scored.aspects == {"kept": [1.0, 0.0], "asked": [2.0, 1.0]}


def test_members_of_a_group_are_judged_together() -> None:
    """a < b and b < a cannot both be, so both lose that constraint and keep the other one."""
    terms = json.dumps(["consistent_order", SHORT])
    conditions = [{"first": a, "second": b, "constraints": terms} for a, b in ("ab", "ba")]
    items = [Judged(judged(c["first"], "").prompt, "before", conditions=c, group="g") for c in conditions]
    assert ConstraintsReward().score(items) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"name": "evil.py:run"}]', "'evil.py:run' is no rule that a record may name"),
        ('[{"name": "regex", "pattern": "(a+)+$"}]', "'regex' is no rule"),
        ('["judge"]', "'judge' is no rule"),
        ("{}", "it is a dict"),
        ("[1", "no list of constraints"),
        ('[{"name": "text_length", "max": 3}]', "unknown key 'max'"),
        ('[{"name": "text_length", "maximum": 3, "weight": 0}]', "weight is above 0"),
    ],
)
def test_a_record_names_rules_and_nothing_else(text: str, message: str) -> None:
    item = Judged(judged("?", "").prompt, "a", conditions={"constraints": text})
    with pytest.raises(RewardError, match=re.escape(message)):
        ConstraintsReward().score([item])


def test_a_constraint_off_the_scale_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def two(prompt, output): return 2")
    config = ConstraintsConfig.model_validate({"constraints": [f"{tmp_path}/own.py:two"]})
    with pytest.raises(RewardError, match=r"own.py:two' gave item 0 the value 2; a constraint is a reward from 0 to 1"):
        ConstraintsReward(config).score([judged("?", "a")])
