"""Instructions that a rule can check: written into prompts, read back from them, and kept or broken by an answer.

A constraint is one fixed sentence, for example ``Use at most 12 words.`` Whatever writes the sentence into a prompt makes
it checkable; nothing else of the prompt matters. `RULES` lists every sentence that is understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polyalign.records.schema import text_of
from polyalign.rewards.base import Judged, Reward
from polyalign_text.config import ConstraintsConfig

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, with inner apostrophes and hyphens."""
    return WORD.findall(text)


def sentences(text: str) -> int:
    """Return how many sentences a text has: pieces that end in ``.``, ``!`` or ``?`` before a space or the end, and a
    last piece without such a mark if it holds a word."""
    return sum(bool(words(piece)) for piece in re.split(r"(?<=[.!?])[\"')\]]*(?:\s+|$)", text))


def has_word(text: str, word: str) -> bool:
    """Return whether a word or phrase stands in the text as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _bullets(answer: str, count: str) -> bool:
    lines = [line for line in answer.splitlines() if line.strip()]
    return len(lines) == int(count) and all(re.match(r"- \S", line) for line in lines)


def _json_keys(answer: str, first: str, second: str) -> bool:
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return isinstance(value, dict) and sorted(value) == sorted((first, second))


@dataclass(frozen=True)
class Rule:
    """``sentence`` is how a prompt says it, with ``{count}`` for a number and ``{text}`` for anything without quotation
    marks; ``holds(answer, *arguments)`` decides. An empty answer keeps no rule."""

    sentence: str
    holds: Callable[..., bool]

    @property
    def pattern(self) -> re.Pattern[str]:
        escaped = re.escape(self.sentence)
        return re.compile(escaped.replace(r"\{count\}", r"(\d+)").replace(r"\{text\}", r'([^"]+)'))


RULES: dict[str, Rule] = {
    "at_most_words": Rule("Use at most {count} words.", lambda answer, n: len(words(answer)) <= int(n)),
    "at_least_words": Rule("Use at least {count} words.", lambda answer, n: len(words(answer)) >= int(n)),
    "sentences": Rule("Write exactly {count} sentences.", lambda answer, n: sentences(answer) == int(n)),
    "include": Rule('Include the word "{text}".', has_word),
    "exclude": Rule('Do not use the word "{text}".', lambda answer, word: not has_word(answer, word)),
    "lowercase": Rule("Write in lowercase letters only.", lambda answer: answer == answer.lower()),
    "uppercase": Rule("Write in capital letters only.", lambda answer: answer == answer.upper()),
    "no_commas": Rule("Do not use commas.", lambda answer: "," not in answer),
    "bullets": Rule('Answer with exactly {count} bullet points, each on its own line after "- ".', _bullets),
    "json": Rule('Answer with a JSON object whose only keys are "{text}" and "{text}".', _json_keys),
    "starts_with": Rule('Start your answer with "{text}".', lambda answer, start: answer.lstrip().startswith(start)),
    "ends_with": Rule('End your answer with "{text}".', lambda answer, end: answer.rstrip().endswith(end)),
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

    def holds(self, answer: str) -> bool:
        """Return whether the answer keeps the constraint."""
        return bool(answer.strip()) and RULES[self.rule].holds(answer, *self.arguments)


def read_constraints(prompt: str) -> tuple[Constraint, ...]:
    """Return every constraint that the prompt states, in the order of `RULES`."""
    return tuple(Constraint(name, match.groups()) for name, rule in RULES.items() for match in rule.pattern.finditer(prompt))


class ConstraintsReward(Reward):
    """How far an answer keeps the checkable instructions of the prompt's last user message, on [0, 1].

    The share of constraints that hold, or with ``credit: all`` 1 only if every one holds. A prompt without constraints
    scores 1: there is nothing to break.
    """

    name = "constraints"

    def __init__(self, config: ConstraintsConfig | None = None) -> None:
        self.config = config or ConstraintsConfig()

    def score(self, items: Sequence[Judged]) -> list[float]:
        return [self._one(item) for item in items]

    def _one(self, item: Judged) -> float:
        asked = [text_of(message.parts) for message in item.prompt if message.role == "user"]
        kept = [constraint.holds(_as_text(item.output)) for constraint in read_constraints(asked[-1] if asked else "")]
        if not kept:
            return 1.0
        return float(all(kept)) if self.config.credit == "all" else sum(kept) / len(kept)


def _as_text(output: Any) -> str:
    if not isinstance(output, str):
        raise TypeError(f"the constraints reward judges text, but the response is a {type(output).__name__}")
    return output
