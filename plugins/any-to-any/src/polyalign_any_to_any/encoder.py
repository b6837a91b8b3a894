"""From messages of text and media to token ids: each medium becomes the codes of its tokenizer between its markers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from polyalign.errors import RecordError
from polyalign.plugins.registry import registry
from polyalign.policies.base import Batch, Kind
from polyalign.policies.completion_mask import Encoded, Piece, PromptResponseEncoder
from polyalign.policies.token_collator import TokenCollator
from polyalign.records.atomic import write_text
from polyalign.records.modality import decoded
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaPart, MediaRef, Message, TextPart
from polyalign_any_to_any.spans import Span, Vocabulary

MARK = "\u2062{}\u2062"  # invisible times: stands for a medium while a chat template is rendered


class MixedEncoder(PromptResponseEncoder):
    """Renders prompts and responses whose parts are text and media in any order.

    A medium is encoded once, by its content; `keep` writes the codes down, so that a later run encodes nothing again.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, chat_template: Literal["auto", "none"] = "auto") -> None:
        super().__init__(tokenizer, chat_template)
        self.vocabulary = vocabulary
        self.codes: dict[str, tuple[int, ...]] = {}
        self.fingerprints = {span.modality: span.tokenizer.fingerprint() for span in vocabulary.spans}
        self.settings = json.dumps(self.fingerprints, sort_keys=True)
        self.markers = frozenset(span.head[0] for span in vocabulary.spans)

    @property
    def unscored_ids(self) -> frozenset[int]:
        """Return the ids that are never chosen: what must follow the last code of a medium, and line breaks inside."""
        return self.vocabulary.unscored

    def text(self, parts: Sequence[TextPart | MediaPart], where: str) -> str:
        return "".join(part.text if isinstance(part, TextPart) else MARK.format(self.span(part.media).modality) for part in parts)

    def span(self, ref: MediaRef) -> Span:
        span = self.vocabulary.span(ref.modality)
        if span is None:
            known = ["text", *(span.modality for span in self.vocabulary.spans)]
            raise RecordError(
                f"a message holds a {ref.modality} part, but this policy reads and writes {', '.join(known)}; add a tokenizer "
                "for it (policy.media), or leave these records out with data.tags"
            )
        return span

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        refs = [part.media for message in prompt for part in message.parts if isinstance(part, MediaPart)]
        ids: list[int] = []
        pieces = self._around_media(self.rendered(prompt), refs)
        for number, (text, ref) in enumerate(pieces):
            special = not self.uses_template and number == 0
            found = self.tokenizer(text, add_special_tokens=special)["input_ids"] if text else []
            if special and found and found[-1] == self.tokenizer.eos_token_id:
                found = found[:-1]
            self._refuse_markers(found)
            ids += [*found, *(self.block(ref, media, "prompt") if ref is not None else ())]
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        return Piece(tuple(ids) or (start,))

    def response(self, response: Sequence[TextPart | MediaPart], media: MediaSource | None) -> Piece:
        ids: list[int] = []
        for part in response:
            if isinstance(part, MediaPart):
                ids += self.block(part.media, media, "response")
            else:
                ids += self.tokenizer(part.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return Piece((*ids, *self.end_ids))

    def block(self, ref: MediaRef, media: MediaSource | None, where: Literal["prompt", "response"]) -> tuple[int, ...]:
        """Return the ids of one medium, its markers included."""
        span = self.span(ref)
        key = f"{ref.sha256}-{self.fingerprints[span.modality]}"
        if key not in self.codes:
            if media is None:
                raise RecordError(
                    f"the {ref.modality} {ref.sha256[:12]} of a {where} cannot be opened: it came without its source"
                )
            self.codes[key] = tuple(span.tokenizer.encode(decoded(ref, media)))
        return span.block(self.codes[key])

    def fit(self, prompt: Piece, response: Piece, max_length: int, max_response: int, whose: str) -> Encoded:
        """As in the base class, but neither side is cut inside a medium: raises `RecordError` where that would be."""
        made = super().fit(prompt, response, max_length, max_response, whose)
        gone = (*prompt.ids[: made.dropped], *response.ids[len(made.response) :])
        if any(self.vocabulary.hidden[token] for token in gone):
            raise RecordError(
                f"{whose} takes {len(prompt.ids)} prompt and {len(response.ids)} response tokens, media among them, and cannot "
                f"be cut to policy.max_length={max_length} and max_response={max_response}; raise them"
            )
        return made

    def keep(self, path: Path) -> None:
        """Write the codes of all media that were encoded, beside those that are written already."""
        self.remember(path)
        write_text(path, json.dumps(self.codes))

    def remember(self, path: Path) -> None:
        if path.is_file():
            self.codes = {name: tuple(codes) for name, codes in json.loads(path.read_text()).items()} | self.codes

    def decode(self, pieces: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, Any]]:
        """Return (modality, text or decoded medium) of the pieces of a response."""
        found: list[tuple[str, Any]] = []
        for modality, ids in pieces:
            span = self.vocabulary.span(modality)
            if span is not None:
                found.append((modality, span.tokenizer.decode(ids)))
            elif text := self.tokenizer.decode(ids, skip_special_tokens=True):
                found.append(("text", text))
        return found or [("text", "")]

    def _around_media(self, text: str, refs: Sequence[MediaRef]) -> list[tuple[str, MediaRef | None]]:
        """Return the text before each medium with the medium, then the text after the last."""
        found: list[tuple[str, MediaRef | None]] = []
        for ref in refs:
            before, mark, text = text.partition(MARK.format(ref.modality))
            if not mark:
                raise RecordError("the chat template drops media or moves them; use another, or set policy.chat_template: none")
            found.append((before, ref))
        return [*found, (text, None)]

    def _refuse_markers(self, ids: Sequence[int]) -> None:
        for token in ids:
            if token in self.markers:
                raise RecordError(
                    f"the text of a prompt spells out {self.tokenizer.decode([token])!r}, which begins a medium; remove it"
                )


class MixedCollator(TokenCollator):
    """Marks which decisions are codes of media, so that an objective can scale them on their own (``kind_scale``)."""

    encoder: MixedEncoder

    def layout(self, samples: Any, rows: Sequence[Encoded], temperature: Any, cache_keys: Any) -> Batch:
        batch = super().layout(samples, rows, temperature, cache_keys)
        codes = self.encoder.vocabulary.codes[batch.tensors["targets"]] & batch.mask[:, 0]
        batch.kind[codes] = int(Kind.MEDIA)
        return batch


def decoded_parts(found: Sequence[tuple[str, Any]]) -> tuple[Any, tuple[str, ...]]:
    """Return what a rollout holds: the only thing of a response, or all of them in order; and the modality of each."""
    modalities = tuple(modality for modality, _ in found)
    things = tuple(thing for _, thing in found)
    return (things[0] if len(things) == 1 else things), modalities


def mime_of(modality: str) -> str:
    """Return what media of a modality are written as."""
    mimes: Mapping[str, str] = {"image": "image/png", "audio": "audio/flac"}
    return mimes.get(modality) or str(registry().get("modalities", modality).mimes[0])
