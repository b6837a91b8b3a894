"""From messages with media to token ids and encoder inputs, by a transformers processor.

The processor is asked for one medium at a time: how many and which tokens stand for it (the same for media of one size),
and the tensors that the model's tower takes. So a medium that many prompts share is prepared once per batch, and length
checks before training need no pixels and no samples. When the encoder is built, its ids for a prompt with two media of unequal
size are compared with the processor's own for the whole prompt, and what the processor does otherwise is taken over as far as it
is known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from polyalign.errors import ConfigError, RecordError
from polyalign.policies.completion_mask import Encoded, Medium, Piece, PromptResponseEncoder
from polyalign.policies.media_kinds import MediaKind, PlacedMedium
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaPart, MediaRef, Message, TextPart

TEXT_OUTPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids", "labels")
PARTS = ("image_processor", "video_processor", "audio_processor", "feature_extractor")  # of a processor, that prepare media


class ProcessorEncoder(PromptResponseEncoder):
    """Renders prompts with media of the given kinds.

    ``among_several``: a medium is prepared otherwise where a prompt or a response holds several of its kind (LLaVA-OneVision does
    not tile such pictures). ``in_context``: the words beside a medium change its ids (Idefics2), so the processor lays out whole
    prompts, which then have media of one kind only.
    """

    def __init__(self, processor: Any, kinds: Sequence[MediaKind], chat_template: Literal["auto", "none"] = "auto") -> None:
        self.processor = processor
        self.kinds = {kind.modality: kind for kind in kinds}
        settings = [_description(processor), *(kind.settings for kind in kinds if kind.settings)]
        self.settings = hashlib.blake2b("\n".join(settings).encode(), digest_size=8).hexdigest()
        self.blocks: dict[tuple[str, Hashable, bool], tuple[int, ...]] = {}
        self.among_several: set[str] = set()
        self.in_context: set[str] = set()
        tokenizer = processor.tokenizer
        if tokenizer.chat_template is None:
            tokenizer.chat_template = processor.chat_template
        self.as_list = True
        self.as_list = chat_template == "none" or not tokenizer.chat_template or self._template_takes_lists(tokenizer)
        super().__init__(tokenizer, chat_template)
        self.ids_by_modality = {kind.modality: kind.media_id for kind in kinds}
        self.media_ids = frozenset(self.ids_by_modality.values())
        self.placeholder_ids = {kind.modality: _only(tokenizer, kind.placeholder) for kind in kinds}
        for kind in kinds:
            self._learn_layout(kind)

    # text

    def content(self, parts: Sequence[TextPart | MediaPart]) -> Any:
        """Return a message's content for the chat template: a list of parts, or text with placeholders if it wants text."""
        if not self.as_list:
            return self.text(parts, "prompt")
        return [
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": self._kind(part).modality}
            for part in parts
        ]

    def text(self, parts: Sequence[TextPart | MediaPart], where: str) -> str:
        return "".join(part.text if isinstance(part, TextPart) else self._kind(part).placeholder for part in parts)

    def rendered(self, prompt: tuple[Message, ...]) -> str:
        return self._completed(super().rendered(prompt))

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        parts = [part for message in prompt for part in message.parts if isinstance(part, MediaPart)]
        ids = self.prompt_ids(prompt)
        self._refuse_spelt_out(ids, parts)
        found = self._media(parts, media)
        if any(part.media.modality in self.in_context for part in parts):
            return Piece(
                self._whole(self.rendered(prompt), self._kind(parts[0]), [medium.size for medium in found]), tuple(found)
            )
        return self._with_blocks(ids, found)

    def response(self, response: Sequence[TextPart | MediaPart], media: MediaSource | None) -> Piece:
        found = self._media([part for part in response if isinstance(part, MediaPart)], media)
        rest = iter(found)
        ids: list[int] = []
        for part in response:
            if isinstance(part, MediaPart):
                ids += next(rest).block
            else:
                ids += self.tokenizer(part.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return Piece((*ids, *self.end_ids), tuple(found))

    def fit(self, prompt: Piece, response: Piece, max_length: int, max_response: int, whose: str) -> Encoded:
        """As in the base class, but what is dropped from the prompt is ordinary text only: never what stands for a medium, nor
        the special tokens that give the conversation its form. Raises `RecordError` where that is not enough."""
        cut = max(0, len(response.ids) - max_response)
        kept = response.ids[: len(response.ids) - cut]
        if cut and any(token in self.media_ids for token in response.ids[len(kept) :]):
            raise RecordError(
                f"the {self._plural} in the response of {whose} do not fit policy.max_response={max_response}; raise it"
            )
        surplus = max(0, len(prompt.ids) + len(kept) - max_length)
        if not surplus:
            return Encoded(prompt.ids, kept, 0, cut, prompt.media, response.media)
        special, fixed = set(self.tokenizer.all_special_ids), self._places_of_media(prompt)
        loose = [place for place, token in enumerate(prompt.ids) if token not in special and place not in fixed]
        if len(loose) < surplus:
            tokens = sum(token in self.media_ids for token in prompt.ids)
            ways = ["raise max_length", *(kind.shrink for kind in self.kinds.values() if kind.shrink)]
            raise RecordError(
                f"the prompt of {whose} takes {tokens} tokens for its {len(prompt.media)} {self._plural} and cannot be cut to "
                f"fit policy.max_length={max_length} with {len(kept)} response tokens; {' or '.join(ways)}"
            )
        gone = set(loose[:surplus])
        ids = tuple(token for place, token in enumerate(prompt.ids) if place not in gone)
        return Encoded(ids, kept, surplus, cut, prompt.media, response.media)

    # media

    def probe_media(self) -> list[tuple[Medium, tuple[int, ...]]]:
        """Return a made-up medium of each kind, to try a model on, and the ids that stand for it."""
        found: list[tuple[Medium, tuple[int, ...]]] = []
        for kind in self.kinds.values():
            block, tensors = self._process(kind, kind.probe(0))
            tokens = self._placeholders(block)
            load: partial[Mapping[str, Tensor]] = partial(dict, tensors)
            found.append((PlacedMedium(f"probe {kind.modality}", tokens, load, block, modality=kind.modality), block))
        return found

    def _media(self, parts: Sequence[MediaPart], media: MediaSource | None) -> list[PlacedMedium]:
        """Return the media of one prompt or response, not yet decoded."""
        counts = {modality: sum(part.media.modality == modality for part in parts) for modality in self.kinds}
        return [self._medium(self._kind(part), part.media, media, counts[part.media.modality] > 1) for part in parts]

    def _medium(self, kind: MediaKind, ref: MediaRef, media: MediaSource | None, several: bool) -> PlacedMedium:
        """Return the medium. ``several``: there are others of its kind beside it."""
        if media is None:
            raise RecordError(f"{kind.modality} {ref.sha256[:12]} cannot be opened: the prompt came without its media source")
        several &= kind.modality in self.among_several
        size = kind.size(media.read(ref))
        known = kind.modality, size, several
        if known not in self.blocks:
            self.blocks[known] = self._process(kind, kind.open(media.read(ref)), several)[0]
        block = self.blocks[known]
        key = f"{ref.sha256}-{self.settings}" + "-among-several" * several
        load = partial(self._load, kind, ref, media, several)
        return PlacedMedium(key, self._placeholders(block), load, block, size, modality=kind.modality)

    def _load(self, kind: MediaKind, ref: MediaRef, media: MediaSource, several: bool) -> Mapping[str, Tensor]:
        return self._process(kind, kind.open(media.read(ref)), several)[1]

    def _process(self, kind: MediaKind, medium: Any, several: bool = False) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        """Return the ids that stand for one medium, and the tower's inputs."""
        copies = 1 + several
        text, placeholder = kind.placeholder * copies, self.placeholder_ids[kind.modality]
        output = self.processor(text=[text], **kind.arguments([medium] * copies), return_tensors="pt", add_special_tokens=False)
        ids = output["input_ids"][0].tolist()
        bare = self.tokenizer(self._completed(text), add_special_tokens=False)["input_ids"]
        before = bare.index(placeholder)
        after = len(bare) - before - copies
        return tuple(ids[before : len(ids) - after][: (len(ids) - before - after) // copies]), {
            name: value[: max(1, len(value) // copies)]
            for name, value in output.items()
            if name not in TEXT_OUTPUTS and isinstance(value, Tensor)
        }

    def _placeholders(self, ids: Sequence[int]) -> int:
        return sum(token in self.media_ids for token in ids)

    def _with_blocks(self, ids: Sequence[int], media: Sequence[PlacedMedium]) -> Piece:
        rest, placeholders = iter(media), set(self.placeholder_ids.values())
        blocks = [next(rest).block if token in placeholders else (token,) for token in ids]
        return Piece(tuple(token for block in blocks for token in block), tuple(media))

    def _places_of_media(self, piece: Piece) -> set[int]:
        """Return where the blocks of the media stand."""
        places: set[int] = set()
        end = 0
        for medium in piece.media:
            assert isinstance(medium, PlacedMedium)
            first, inner = (
                next(place for place, token in enumerate(ids) if token in self.media_ids)
                for ids in (piece.ids[end:], medium.block)
            )
            start = end + first - inner
            end = start + len(medium.block)
            places.update(range(start, end))
        return places

    def _refuse_spelt_out(self, ids: Sequence[int], parts: Sequence[MediaPart]) -> None:
        """Raise `RecordError` where text of a prompt would be taken for media, or media are missing."""
        for kind in self.kinds.values():
            count, placeholder = sum(part.media.modality == kind.modality for part in parts), self.placeholder_ids[kind.modality]
            for token in {placeholder, kind.media_id}:
                found, due = ids.count(token), count if token == placeholder else 0
                if found != due:
                    why = "its text spells the placeholder out; remove it" if found > due else "the chat template drops them"
                    raise RecordError(
                        f"a prompt with {count} {kind.plural} is rendered with {found} of {self.tokenizer.decode([token])!r}, "
                        f"expected {due}: {why}"
                    )

    def _kind(self, part: MediaPart) -> MediaKind:
        if part.media.modality not in self.kinds:
            raise RecordError(
                f"a message holds a {part.media.modality} part, but this policy reads text and {self._plural}; "
                "leave these records out with data.tags"
            )
        return self.kinds[part.media.modality]

    @property
    def _plural(self) -> str:
        return " and ".join(kind.plural for kind in self.kinds.values())

    # what the processor wants

    def _template_takes_lists(self, tokenizer: Any) -> bool:
        """Try whether the chat template prints a placeholder for a list of parts; older templates want text."""
        from jinja2 import TemplateError

        for kind in self.kinds.values():
            turn = {"role": "user", "content": [{"type": kind.modality}, {"type": "text", "text": "?"}]}
            try:
                rendered = str(tokenizer.apply_chat_template([turn], tokenize=False))
            except (TemplateError, TypeError):
                return False
            if rendered.count(kind.placeholder) != 1 or "?" not in rendered:
                return False
        return True

    def _completed(self, text: str) -> str:
        """Return a rendered prompt with what the processor adds to texts (PaliGemma: a start token behind the pictures)."""
        arguments: dict[str, Any] = {}
        for kind in self.kinds.values():
            if count := text.count(kind.placeholder):
                arguments |= kind.arguments([kind.probe(0)] * count)
        return str(self.processor.prepare_inputs_layout(text=[text], **arguments)[1][0]) if arguments else text

    def _whole(self, text: str, kind: MediaKind, sizes: Sequence[Hashable]) -> tuple[int, ...]:
        """Return the processor's own ids for a rendered prompt with media of these sizes."""
        blanks = kind.arguments([kind.blank(size) for size in sizes])
        output = self.processor(text=[text], **blanks, return_tensors="pt", add_special_tokens=not self.uses_template)
        return tuple(output["input_ids"][0].tolist())

    def _learn_layout(self, kind: MediaKind) -> None:
        """Compare with the processor's ids for a prompt with two media of unequal size; find out what they depend on."""
        media = [kind.probe(number) for number in range(2)]
        # Text between the media, as in real prompts. The rendered text already has the special tokens it needs.
        text = f"{kind.placeholder}a b{kind.placeholder}c"
        output = self.processor(text=[text], **kind.arguments(media), return_tensors="pt", add_special_tokens=False)
        expected = output["input_ids"][0].tolist()
        ids = self.tokenizer(self._completed(text), add_special_tokens=False)["input_ids"]
        for several in (False, True):
            blocks = [self._process(kind, medium, several)[0] for medium in media]
            found = self._with_blocks(ids, [PlacedMedium("", 0, dict, block) for block in blocks]).ids
            if several:
                self.among_several.add(kind.modality)
            if list(found) == expected:
                return
            if self._placeholders(found) == self._placeholders(expected):
                self.in_context.add(kind.modality)
                return
        raise ConfigError(
            f"{type(self.processor).__name__} lays out prompts in a way that this policy does not know: for "
            f"{text!r} it gives {len(expected)} ids, {kind.plural} one by one give {len(found)}"
        )


def _only(tokenizer: Any, placeholder: str) -> int:
    (token,) = tokenizer(placeholder, add_special_tokens=False)["input_ids"]
    return int(token)


def _description(processor: Any) -> str:
    """Return the processor's settings as text: other settings make other features of the same medium."""
    parts = [getattr(processor, name, None) for name in PARTS]
    found = [part.to_dict() for part in parts if part is not None]
    return json.dumps(found, sort_keys=True, default=str)
