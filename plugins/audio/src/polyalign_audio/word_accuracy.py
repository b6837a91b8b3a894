"""The `word_accuracy` reward: 1 less the word error rate, of a transcript or of what a recogniser hears in a clip."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from typing import Any

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged
from polyalign.rewards.rules.base import Verifier
from polyalign_audio.config import WordAccuracyConfig
from polyalign_audio.judged_clips import clip_of, content_key
from polyalign_audio.recognisers import Recogniser, recogniser_of

NOT_SPOKEN = re.compile(r"[^\w\s']|_")


class WordAccuracy(Verifier):
    """max(0, 1 - errors / words due); errors are words put in, left out or changed. Case and punctuation do not count.

    A text is a transcript and judged as it stands. A clip is heard by the recogniser first, each clip once. The words due are the
    record's answer.
    """

    name = "word_accuracy"
    config: WordAccuracyConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config or WordAccuracyConfig())
        self.heard: dict[str, str] = {}

    @cached_property
    def recogniser(self) -> Recogniser:
        return recogniser_of(self.config.recogniser)

    def verify(self, item: Judged) -> float:
        due = item.conditions.get(self.config.answer)
        if not isinstance(due, str) or not words(due):
            raise RewardError(f"reward {self.name!r} found {due!r} under the condition {self.config.answer!r}; expected words")
        accuracy = word_accuracy(self.said(item), due)
        return float(accuracy == 1) if self.config.exact else accuracy

    def said(self, item: Judged) -> str:
        """Return the response as text."""
        if isinstance(item.output, str):
            return item.output
        clip = clip_of(item, self.name)
        key = content_key(clip)
        if key not in self.heard:
            self.heard[key] = self.recogniser.transcript(clip)
        return self.heard[key]


def word_accuracy(said: str, due: str) -> float:
    """Return max(0, 1 - word error rate) of ``said`` against ``due``."""
    expected = words(due)
    return max(0.0, 1 - word_errors(words(said), expected) / len(expected))


def words(text: str) -> list[str]:
    """Return the words in one case and one Unicode form, without punctuation; hyphens part them."""
    return NOT_SPOKEN.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split()


def word_errors(said: list[str], due: list[str]) -> int:
    """Return how many words must be put in, left out or changed: the Levenshtein distance over words."""
    row = list(range(len(due) + 1))
    for number, found in enumerate(said, 1):
        above, row = row, [number]
        for place, wanted in enumerate(due, 1):
            row.append(min(above[place] + 1, row[place - 1] + 1, above[place - 1] + (found != wanted)))
    return row[-1]
