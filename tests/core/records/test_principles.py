"""SALMON's labels: the most pronounced principle decides, negation turns it round, and the prompt says so."""

from __future__ import annotations

import pytest

from polyalign.errors import RecordError
from polyalign.records.principles import Principle, conditioned, dominant, with_principles
from polyalign.records.schema import Candidate, Comparison, Record, text_of

PRINCIPLES = [Principle("honest", "Be honest.", "Deceive."), Principle("short", "Be short.")]


def record(number: int = 0) -> Record:
    """The first answer is more honest (1.4), the second shorter (0.2)."""
    feedback = (
        Comparison(ranking=((0,), (1,)), aspect="honest", strength=1.4),
        Comparison(ranking=((1,), (0,)), aspect="short", strength=0.2),
    )
    return Record(id=f"r{number}", prompt="Ask.", candidates=(Candidate(parts="true"), Candidate(parts="no")), feedback=feedback)


def test_the_papers_example_negating_the_dominant_principle_flips_the_label():
    """Scores (.2, -1.4, .9), the second negated: it stays dominant, and its sign is +."""
    scores = {"a": 0.2, "b": -1.4, "c": 0.9}
    assert dominant(scores, []) == ("b", -1.4)
    assert dominant(scores, ["b"]) == ("b", 1.4)


def test_negating_all_drawn_principles_always_flips_the_label():
    plain = list(conditioned([record(n) for n in range(30)], PRINCIPLES, negate=0.0, flip=0.0))
    turned = list(conditioned([record(n) for n in range(30)], PRINCIPLES, negate=1.0, flip=0.0))
    assert len(plain) == len(turned) == 120
    for one, other in zip(plain, turned, strict=True):
        assert one.candidates == other.candidates[::-1]
        assert one.conditions["principles"].split(",") == [name[1:] for name in other.conditions["principles"].split(",")]


def test_the_prompt_says_which_principles_and_which_opposites():
    found = list(conditioned([record(n) for n in range(30)], PRINCIPLES, flip=0.0))
    for one in found:
        text = text_of(one.prompt[-1].parts)
        names = one.conditions["principles"].split(",")
        assert ("- Be honest." in text) == ("honest" in names)
        assert ("- Deceive." in text) == ("-honest" in names)
        assert ("- The opposite of this guideline: Be short." in text) == ("-short" in names)
    assert {name for one in found for name in one.conditions["principles"].split(",")} == {"honest", "-honest", "short", "-short"}
    assert found == list(conditioned([record(n) for n in range(30)], PRINCIPLES, flip=0.0))


def test_unknown_principles_are_named_and_prompts_without_principles_stay():
    with pytest.raises(RecordError, match="'short', which is no principle; known: honest"):
        list(conditioned([record()], PRINCIPLES[:1]))
    assert with_principles(record().prompt) == record().prompt
    assert text_of(with_principles(record().prompt, ["A."], ["B."])[-1].parts).endswith(
        "- A.\n- The opposite of this guideline: B."
    )
