"""How media lie among the ids of a language model: ``head code code ... tail``, and which ids may follow which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign_any_to_any.media.base import MediaTokenizer

TEXT = 0  # the class of ids that are no codes


@dataclass(frozen=True, eq=False)
class Span:
    """One kind of media: ``head`` and ``tail`` stand around it, ``ids[code]`` is the model's id of a code.

    ``line_break`` follows every ``line`` codes, where the model wants that (Emu3).
    """

    tokenizer: MediaTokenizer
    head: tuple[int, ...]
    ids: tuple[int, ...]
    tail: tuple[int, ...]
    line: int | None = None
    line_break: int | None = None
    writable: bool = True  # whether codes can be made a medium again; if not, they are read and scored, and never drawn

    @property
    def modality(self) -> str:
        return self.tokenizer.modality

    @property
    def length(self) -> int:
        """Return how many ids the longest medium takes, head and tail included."""
        return (
            len(self.head) + len(self.tail) + self.tokenizer.longest + (self.tokenizer.longest // self.line if self.line else 0)
        )

    def block(self, codes: Sequence[int]) -> tuple[int, ...]:
        """Return the ids of a medium, head and tail included."""
        found = list(self.head)
        for place, code in enumerate(codes, 1):
            found.append(self.ids[code])
            if self.line and place % self.line == 0:
                found.append(self.line_break)  # type: ignore[arg-type]
        return (*found, *self.tail)


class Vocabulary:
    """The ids of a model, in classes: text, and for every place in a frame of every kind of media the codes that may stand there.

    What an id may be is known from the one before it: this is what constrains decoding, and what scores are normalised over, so
    that a code competes with the codes of its codebook and never with words.
    """

    def __init__(self, size: int, spans: Sequence[Span], never: Sequence[int] = ()) -> None:
        self.size, self.spans = size, tuple(spans)
        self.follows = torch.full((size,), TEXT)  # [V]: the class of what follows an id
        allowed = [torch.ones(size, dtype=torch.bool)]
        unscored: set[int] = set()
        self.span_of: dict[int, int] = {}
        allowed[TEXT][list(never)] = False  # placeholders that are no words
        for number, span in enumerate(self.spans):
            if span.head[-1] in self.span_of or len(set(span.ids)) < len(span.ids):
                raise ConfigError(f"the ids of {span.modality} overlap with those of another medium")
            first, unit = len(allowed), span.tokenizer.unit
            self.span_of[span.head[-1]] = number
            self.follows[span.head[-1]] = first
            for place in range(unit):
                codes = [span.ids[code] for code in span.tokenizer.allowed(place)]
                self.follows[codes] = first + (place + 1) % unit
                mask = torch.zeros(size, dtype=torch.bool)
                mask[codes] = True
                if place == 0 and span.tokenizer.length is None:
                    mask[span.tail[0]] = True
                allowed.append(mask)
            hidden = [*span.ids, *span.tail]
            if span.line_break is not None:
                self.follows[span.line_break] = first
                hidden.append(span.line_break)
                unscored.add(span.line_break)
            allowed[TEXT][hidden] = False
            unscored |= set(span.tail if span.tokenizer.length is not None else span.tail[1:])
        self.allowed = torch.stack(allowed)  # [C, V]
        self.unscored = frozenset(unscored)
        self.codes = torch.zeros(size, dtype=torch.bool)
        self.hidden = torch.zeros(size, dtype=torch.bool)  # codes, and what stands around and between them
        for span in self.spans:
            self.codes[list(span.ids)] = True
            self.hidden[[*span.ids, *span.head, *span.tail]] = True
        self.hidden[list(never)] = True

    def span(self, modality: str) -> Span | None:
        return next((span for span in self.spans if span.modality == modality), None)

    def masked(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return logits ``[P, V]`` with what may not stand at a position of these classes ``[P]`` out of reach: so low that it
        has no probability, and finite, so that a weight of 0 on it gives 0."""
        return logits.masked_fill(~self.allowed.to(logits.device)[classes], -1e4)


class Writing:
    """Which id may come next in one response. ``want``: the response is one medium of this modality, or text; None: anything.

    ``room``: how many ids may still be written. A medium begins only where it fits, so that none is ever cut.
    """

    def __init__(self, vocabulary: Vocabulary, end_ids: Sequence[int], want: str | None, room: int) -> None:
        self.vocabulary, self.room = vocabulary, room
        self.forced: list[int] = []
        self.span: Span | None = None
        self.place = 0
        span = vocabulary.span(want) if want is not None else None
        if span is not None:
            self.forced = list(span.head)
        self.end = list(end_ids) if span is not None else []
        self.heads = {one.head[0]: one for one in vocabulary.spans}
        self.never = {head for head, one in self.heads.items() if want == "text" or not one.writable}

    @property
    def in_medium(self) -> bool:
        """Return whether the next id is a code, or what may stand in its place."""
        return self.span is not None and not self.forced

    def mask(self) -> Tensor | None:
        """Return which ids may come next, ``[V]``; None where only one may, the first of ``forced``."""
        if self.forced:
            return None
        vocabulary = self.vocabulary
        if self.span is None:
            mask = vocabulary.allowed[TEXT].clone()
            late = {head for head, span in self.heads.items() if span.length >= self.room}
            mask[sorted(self.never | late)] = False
            return mask
        number = vocabulary.spans.index(self.span)
        first = int(vocabulary.follows[self.span.head[-1]])
        mask = vocabulary.allowed[first + self.place % self.span.tokenizer.unit]
        if self.place == 0 and self.span.tokenizer.length is None:  # a medium of no codes is none
            mask = mask.clone()
            mask[vocabulary.spans[number].tail[0]] = False
        return mask

    def write(self, token: int) -> None:
        """Take note of the id that was chosen."""
        self.room -= 1
        if self.forced:
            assert token == self.forced.pop(0)
            if self.span is None and token in self.vocabulary.span_of and not self.forced:
                self._begin(token)
        elif self.span is None:
            span = self.heads.get(token)
            if span is not None:
                self.forced = list(span.head[1:])
                if not self.forced:
                    self._begin(token)
        elif token == self.span.tail[0]:
            self._close(1)
        else:
            self.place += 1
            tokenizer = self.span.tokenizer
            if self.span.line and self.place % self.span.line == 0:
                self.forced.append(self.span.line_break)  # type: ignore[arg-type]
            if self.place == tokenizer.longest:
                self._close(0)

    def _begin(self, token: int) -> None:
        self.span, self.place = self.vocabulary.spans[self.vocabulary.span_of[token]], 0

    def _close(self, written: int) -> None:
        assert self.span is not None
        self.forced += [*self.span.tail[written:], *self.end]
        self.span = None


def pieces(vocabulary: Vocabulary, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Return the ids of a response as (modality, ids) in order: those of text, and the codes of each medium."""
    found: list[tuple[str, list[int]]] = []
    heads = {span.head[0]: span for span in vocabulary.spans}
    place, text = 0, list[int]()
    while place < len(ids):
        span = heads.get(ids[place])
        if span is None or tuple(ids[place : place + len(span.head)]) != span.head:
            text.append(ids[place])
            place += 1
            continue
        if text:
            found.append(("text", text))
            text = []
        place += len(span.head)
        code_of = {token: code for code, token in enumerate(span.ids)}
        codes: list[int] = []
        while place < len(ids) and (ids[place] in code_of or ids[place] == span.line_break):
            if ids[place] in code_of:
                codes.append(code_of[ids[place]])
            place += 1
        place += sum(token == due for token, due in zip(ids[place:], span.tail))
        found.append((span.modality, codes))
    return [*found, ("text", text)] if text else found
