"""Counts over a data set, one pass, no record kept: what is there, and what may bias training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import product

from polyalign.randomness import keyed_seed
from polyalign.records.judgements import content_of, contrast, strict_pairs
from polyalign.records.schema import Comparison, Message, Record, Refinement, text_of

_HELD_OUT = {"test", "eval", "evaluation", "validation", "val", "valid", "dev", "heldout"}


@dataclass
class Bias:
    """Two habits of preference data that a model can learn instead of quality, over strict pairs.

    Length is in characters, over pairs whose two responses both hold text; position is the order in the record.
    """

    pairs: int = 0
    first: int = 0
    text_pairs: int = 0
    longer: int = 0
    shorter: int = 0
    length_difference: int = 0

    @property
    def mean_length_difference(self) -> float | None:
        """Return the mean of len(chosen) - len(rejected), or None without text pairs."""
        return self.length_difference / self.text_pairs if self.text_pairs else None

    @property
    def share_longer(self) -> float | None:
        """Return the share of text pairs whose chosen response is the longer one."""
        return self.longer / self.text_pairs if self.text_pairs else None

    @property
    def share_first(self) -> float | None:
        """Return the share of pairs whose chosen response is listed before the rejected one."""
        return self.first / self.pairs if self.pairs else None


@dataclass
class SplitCensus:
    """The counts of one split. Prompts, pairs and media are remembered as 8-byte hashes."""

    records: int = 0
    candidates: Counter[int] = field(default_factory=Counter)  # number of candidates -> records
    feedback: Counter[str] = field(default_factory=Counter)
    aspects: Counter[str] = field(default_factory=Counter)
    annotators: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)  # modality -> distinct media
    media_bytes: int = 0
    strict_pairs: int = 0
    ties: int = 0
    incomparable: int = 0
    duplicate_pairs: int = 0
    contradicting_pairs: int = 0
    identical_pairs: int = 0
    bias: Bias = field(default_factory=Bias)
    prompts: set[int] = field(default_factory=set)
    _pairs: dict[int, int] = field(default_factory=dict)
    _media: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Count one record."""
        self.records += 1
        self.candidates[len(record.candidates)] += 1
        self.groups[record.group or "(none)"] += 1
        self.tags.update(record.tags)
        self.licences[record.licence or "(none)"] += 1
        self.prompts.update(prompt_key(record.prompt_of(candidate)) for candidate in range(len(record.candidates)))
        for ref in record.media():
            if ref.sha256 not in self._media:
                self._media.add(ref.sha256)
                self.media[ref.modality] += 1
                self.media_bytes += ref.length
        for feedback in record.feedback:
            self.feedback[feedback.type] += 1
            self.annotators[feedback.annotator or "(none)"] += 1
            if not isinstance(feedback, Refinement):
                self.aspects[feedback.aspect] += 1
            if isinstance(feedback, Comparison):
                self._compare(record, feedback)

    def _compare(self, record: Record, comparison: Comparison) -> None:
        self.ties += sum(len(tier) * (len(tier) - 1) // 2 for tier in comparison.ranking)
        self.incomparable += len(comparison.incomparable)
        for better, worse in strict_pairs(comparison):
            kind = contrast(record, better, worse)
            if kind is None:
                continue
            self.strict_pairs += 1
            chosen, rejected = record.candidates[better].parts, record.candidates[worse].parts
            if kind == "response":
                self.bias.pairs += 1
                self.bias.first += better < worse
                lengths = len(text_of(chosen)), len(text_of(rejected))
                if all(lengths):
                    self.bias.text_pairs += 1
                    self.bias.longer += lengths[0] > lengths[1]
                    self.bias.shorter += lengths[0] < lengths[1]
                    self.bias.length_difference += lengths[0] - lengths[1]
                if content_of(chosen) == content_of(rejected):
                    self.identical_pairs += 1
                    continue
            ends = [
                keyed_seed(prompt_key(record.prompt_of(end)), comparison.aspect, *content_of(record.candidates[end].parts))
                for end in (better, worse)
            ]
            # The same verdict by two annotators of one record is no duplicate.
            first_seen = self._pairs.setdefault(keyed_seed(*ends), self.records)
            self.duplicate_pairs += first_seen != self.records
            self.contradicting_pairs += keyed_seed(*reversed(ends)) in self._pairs


def prompt_key(prompt: tuple[Message, ...]) -> int:
    """Return a hash of a prompt's roles, texts and media: equal prompts, equal key."""
    return keyed_seed(*(item for message in prompt for item in (message.role, *content_of(message.parts))))


def leaks(splits: dict[str, SplitCensus]) -> dict[tuple[str, str], int]:
    """Return how many prompts each (training split, held-out split) share, where any are.

    A split is held out if the last word of its name says so: test, eval, validation, dev ...
    """
    held_out = [name for name in splits if _last_word(name) in _HELD_OUT]
    training = [name for name in splits if name not in held_out]
    shared = {(a, b): len(splits[a].prompts & splits[b].prompts) for a, b in product(training, held_out)}
    return {pair: count for pair, count in shared.items() if count}


def _last_word(name: str) -> str:
    return name.replace("-", ".").replace("_", ".").rpartition(".")[2].lower()
