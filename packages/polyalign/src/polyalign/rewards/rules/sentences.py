"""Constraints in plain English: fixed sentences that a prompt states and a rule checks.

A constraint is one sentence, for example ``Use at most 12 words.`` Whatever writes the sentence into a prompt makes it
checkable; nothing else of the prompt matters. `RULES` lists every sentence that is understood.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from polyalign.rewards.base import Judged
from polyalign.rewards.config import RewardTerm


@dataclass(frozen=True)
class Rule:
    """``sentence`` is how a prompt says it, with ``{count}`` for a number and ``{text}`` for anything without quotation
    marks; ``reward(*arguments)`` is the slot of the reward that checks it."""

    sentence: str
    reward: Callable[..., dict[str, Any]]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        escaped = re.escape(self.sentence)
        return re.compile(escaped.replace(r"\{count\}", r"(\d+)").replace(r"\{text\}", r'([^"]+)'))


def _length(unit: str, minimum: str | None, maximum: str | None) -> dict[str, Any]:
    limits = {"minimum": minimum, "maximum": maximum}
    return {"name": "text_length", "unit": unit, **{key: int(value) for key, value in limits.items() if value is not None}}


RULES: dict[str, Rule] = {
    "at_most_words": Rule("Use at most {count} words.", lambda n: _length("words", None, n)),
    "at_least_words": Rule("Use at least {count} words.", lambda n: _length("words", n, None)),
    "sentences": Rule("Write exactly {count} sentences.", lambda n: _length("sentences", n, n)),
    "include": Rule('Include the word "{text}".', lambda word: {"name": "keywords", "include": [word]}),
    "exclude": Rule('Do not use the word "{text}".', lambda word: {"name": "keywords", "exclude": [word]}),
    "lowercase": Rule("Write in lowercase letters only.", lambda: {"name": "letter_case", "case": "lower"}),
    "uppercase": Rule("Write in capital letters only.", lambda: {"name": "letter_case", "case": "upper"}),
    "no_commas": Rule("Do not use commas.", lambda: {"name": "regex", "pattern": ",", "absent": True}),
    "bullets": Rule(
        'Answer with exactly {count} bullet points, each on its own line after "- ".', lambda n: _length("bullets", n, n)
    ),
    "json": Rule(
        'Answer with a JSON object whose only keys are "{text}" and "{text}".', lambda *keys: {"name": "json", "keys": list(keys)}
    ),
    "starts_with": Rule('Start your answer with "{text}".', lambda text: {"name": "starts_with", "text": text}),
    "ends_with": Rule('End your answer with "{text}".', lambda text: {"name": "ends_with", "text": text}),
}


@dataclass(frozen=True)
class Constraint:
    """One rule with its arguments as they stand in the prompt."""

    rule: str
    arguments: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Return the sentence that puts this constraint into a prompt."""
        written = RULES[self.rule].sentence
        for argument in self.arguments:
            written = re.sub(r"\{count\}|\{text\}", lambda _, value=argument: value, written, count=1)  # type: ignore[misc]
        return written

    def term(self) -> RewardTerm:
        """Return the reward that checks it."""
        return _term(self)

    def holds(self, answer: str) -> bool:
        """Return whether the answer keeps the constraint. An empty answer keeps none."""
        (value,) = self.term().build().score([Judged((), answer)])
        return bool(answer.strip()) and value == 1


@lru_cache(maxsize=4096)
def _term(constraint: Constraint) -> RewardTerm:
    return RewardTerm.model_validate(RULES[constraint.rule].reward(*constraint.arguments))


def read_constraints(prompt: str) -> tuple[Constraint, ...]:
    """Return every constraint that the prompt states, in the order of `RULES`."""
    return tuple(Constraint(name, match.groups()) for name, rule in RULES.items() for match in rule.pattern.finditer(prompt))
