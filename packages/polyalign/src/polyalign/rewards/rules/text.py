"""Verifiers of a text by itself, or against its prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, asked
from polyalign.rewards.rules.base import TextVerifier, within
from polyalign.rewards.rules.config import (
    EdgeConfig,
    ExtractiveConfig,
    JsonConfig,
    KeywordsConfig,
    LetterCaseConfig,
    RegexConfig,
    TextLengthConfig,
)

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits, with inner apostrophes and hyphens."""
    return WORD.findall(text)


def sentences(text: str) -> int:
    """Return how many sentences a text has: pieces that end in ``.``, ``!`` or ``?`` before a space or the end, and a
    last piece without such a mark if it holds a word."""
    return sum(bool(words(piece)) for piece in re.split(r"(?<=[.!?])[\"')\]]*(?:\s+|$)", text))


def lines(text: str) -> list[str]:
    """Return the lines that are not blank."""
    return [line for line in text.splitlines() if line.strip()]


def bullets(text: str) -> int | None:
    """Return how many bullet points a text is made of; None where a line is none."""
    found = lines(text)
    return len(found) if all(re.match(r"- \S", line) for line in found) else None


def has_word(text: str, word: str, match_case: bool = False) -> bool:
    """Return whether a word or phrase stands in the text as whole words."""
    flags = re.NOFLAG if match_case else re.IGNORECASE
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags) is not None


def n_grams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return each run of n words, in small letters, in order."""
    found = [word.lower() for word in words(text)]
    return [tuple(found[at : at + n]) for at in range(len(found) - n + 1)]


_COUNTS: dict[str, Callable[[str], int | None]] = {
    "words": lambda text: len(words(text)),
    "characters": len,
    "sentences": sentences,
    "lines": lambda text: len(lines(text)),
    "bullets": bullets,
}


class TextLength(TextVerifier):
    """1 if the number of words, characters, sentences, lines or bullet points lies in the range, else 0."""

    name = "text_length"
    config: TextLengthConfig

    def verify_text(self, text: str, item: Judged) -> float:
        count = _COUNTS[self.config.unit](text)
        return count is not None and within(count, self.config.minimum, self.config.maximum)


class Keywords(TextVerifier):
    """The share of words that are there as they should be, or not there as they should not."""

    name = "keywords"
    config: KeywordsConfig

    def verify_text(self, text: str, item: Judged) -> float:
        kept = [has_word(text, word, self.config.match_case) for word in self.config.include]
        kept += [not has_word(text, word, self.config.match_case) for word in self.config.exclude]
        return sum(kept) / len(kept)


class LetterCase(TextVerifier):
    """1 if every letter is small (or a capital)."""

    name = "letter_case"
    config: LetterCaseConfig

    def verify_text(self, text: str, item: Judged) -> float:
        return text == (text.lower() if self.config.case == "lower" else text.upper())


class StartsWith(TextVerifier):
    name = "starts_with"
    config: EdgeConfig

    def verify_text(self, text: str, item: Judged) -> float:
        return text.lstrip().startswith(self.config.text)


class EndsWith(TextVerifier):
    name = "ends_with"
    config: EdgeConfig

    def verify_text(self, text: str, item: Judged) -> float:
        return text.rstrip().endswith(self.config.text)


class Regex(TextVerifier):
    """1 if the pattern occurs (``absent``: does not)."""

    name = "regex"
    config: RegexConfig

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.config.pattern, re.IGNORECASE if self.config.ignore_case else re.NOFLAG)

    def verify_text(self, text: str, item: Judged) -> float:
        found = self.pattern.fullmatch(text) if self.config.whole else self.pattern.search(text)
        return (found is None) == self.config.absent


class Json(TextVerifier):
    """1 if the whole response is JSON, with the keys or of the schema asked for."""

    name = "json"
    config: JsonConfig

    def __init__(self, config: JsonConfig) -> None:
        super().__init__(config)
        self.valid = _schema_check(config.json_schema) if config.json_schema is not None else lambda value: True

    def verify_text(self, text: str, item: Judged) -> float:
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        keys = self.config.keys
        return (keys is None or (isinstance(value, dict) and sorted(value) == sorted(keys))) and self.valid(value)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _schema_check(schema: dict[str, Any]) -> Callable[[Any], bool]:
    """Return a test of a value against a JSON Schema. References to other documents are not fetched."""
    try:
        from jsonschema import SchemaError  # type: ignore[import-untyped]
        from jsonschema.validators import validator_for  # type: ignore[import-untyped]
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError as error:
        raise RewardError("json_schema needs jsonschema, which is not installed: pip install 'polyalign[rules]'") from error
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise RewardError(f"json_schema is not a JSON Schema: {error.message}") from error
    validator = kind(schema, registry=Registry())

    def valid(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except Unresolvable as error:
            raise RewardError(f"json_schema refers to {error.ref!r}, which it does not contain; nothing is fetched") from error

    return valid


class Extractive(TextVerifier):
    """The share of the response's runs of n words that stand in the prompt's last user message; an answer too short to
    have one scores 0."""

    name = "extractive"
    config: ExtractiveConfig

    def verify_text(self, text: str, item: Judged) -> float:
        own, source = n_grams(text, self.config.n), set(n_grams(asked(item.prompt), self.config.n))
        return sum(gram in source for gram in own) / len(own) if own else 0.0
