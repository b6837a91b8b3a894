"""From messages with pictures to token ids and encoder inputs, by a transformers processor.

The processor is asked for one picture at a time: how many and which tokens stand for it (the same for pictures of one size),
and the tensors that the model's tower takes. So a picture that many prompts share is prepared once per batch, and length
checks before training need no pixels. When the encoder is built, its ids for a prompt with two pictures are compared with
the processor's own for the whole prompt, and what the processor does otherwise is taken over as far as it is known.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from polyalign.errors import ConfigError, RecordError
from polyalign.policies.completion_mask import Encoded, Medium, Piece, PromptResponseEncoder
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaPart, MediaRef, Message, TextPart
from polyalign_image.modality import ImageModality

TEXT_OUTPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids", "labels")
ORIENTATION = 0x0112  # the EXIF tag; values from 5 on turn the picture on its side
PROBE_SIZES = ((64, 48), (48, 64))  # width and height


@dataclass(frozen=True, eq=False)
class Picture(Medium):
    """``block``: the ids that stand for it, placeholders and what the processor puts around them. ``size``: width, height."""

    block: tuple[int, ...] = ()
    size: tuple[int, int] = (0, 0)


class ProcessorEncoder(PromptResponseEncoder):
    """Renders prompts with pictures. ``media_id``: the id of the tokens that features take the place of, from the model's
    configuration (some processors name the token in front of them instead).

    ``among_several``: a picture is prepared otherwise where a prompt or a response holds several (LLaVA-OneVision does not
    tile them). ``in_context``: the words beside a picture change its ids (Idefics2), so the processor lays out whole prompts.
    """

    among_several = in_context = False

    def __init__(self, processor: Any, media_id: int, chat_template: Literal["auto", "none"] = "auto") -> None:
        self.processor, self.codec = processor, ImageModality()
        self.settings = hashlib.blake2b(_description(processor).encode(), digest_size=8).hexdigest()
        self.blocks: dict[tuple[tuple[int, int], bool], tuple[int, ...]] = {}
        tokenizer = processor.tokenizer
        if tokenizer.chat_template is None:
            tokenizer.chat_template = processor.chat_template
        self.placeholder = str(processor.image_token)
        self.as_list = True
        self.as_list = chat_template == "none" or not tokenizer.chat_template or self._template_takes_lists(tokenizer)
        super().__init__(tokenizer, chat_template)
        self.media_ids = frozenset({media_id})
        (self.placeholder_id,) = tokenizer(self.placeholder, add_special_tokens=False)["input_ids"]
        self._learn_layout()

    # text

    def content(self, parts: Sequence[TextPart | MediaPart]) -> Any:
        """Return a message's content for the chat template: a list of parts, or text with placeholders if it wants text."""
        if not self.as_list:
            return self.text(parts, "prompt")
        return [
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
            for part in self._known(parts)
        ]

    def text(self, parts: Sequence[TextPart | MediaPart], where: str) -> str:
        return "".join(part.text if isinstance(part, TextPart) else self.placeholder for part in self._known(parts))

    def rendered(self, prompt: tuple[Message, ...]) -> str:
        return self._completed(super().rendered(prompt))

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        refs = [part.media for message in prompt for part in message.parts if isinstance(part, MediaPart)]
        ids = self.prompt_ids(prompt)
        self._refuse_spelt_out(ids, len(refs))
        pictures = [self._picture(ref, media, len(refs) > 1) for ref in refs]
        if pictures and self.in_context:
            return Piece(self._whole(self.rendered(prompt), [picture.size for picture in pictures]), tuple(pictures))
        return self._with_blocks(ids, pictures)

    def response(self, response: Sequence[TextPart | MediaPart], media: MediaSource | None) -> Piece:
        several = sum(isinstance(part, MediaPart) for part in response) > 1
        ids: list[int] = []
        found: list[Medium] = []
        for part in self._known(response):
            if isinstance(part, MediaPart):
                picture = self._picture(part.media, media, several)
                ids += picture.block
                found.append(picture)
            else:
                ids += self.tokenizer(part.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return Piece((*ids, *self.end_ids), tuple(found))

    def fit(self, prompt: Piece, response: Piece, max_length: int, max_response: int, whose: str) -> Encoded:
        """As in the base class, but what is dropped from the prompt is ordinary text only: never what stands for a picture, nor
        the special tokens that give the conversation its form. Raises `RecordError` where that is not enough."""
        cut = max(0, len(response.ids) - max_response)
        kept = response.ids[: len(response.ids) - cut]
        if cut and any(token in self.media_ids for token in response.ids[len(kept) :]):
            raise RecordError(f"the pictures in the response of {whose} do not fit policy.max_response={max_response}; raise it")
        surplus = max(0, len(prompt.ids) + len(kept) - max_length)
        if not surplus:
            return Encoded(prompt.ids, kept, 0, cut, prompt.media, response.media)
        special, fixed = set(self.tokenizer.all_special_ids), self._places_of_pictures(prompt)
        loose = [place for place, token in enumerate(prompt.ids) if token not in special and place not in fixed]
        if len(loose) < surplus:
            pictures = sum(token in self.media_ids for token in prompt.ids)
            raise RecordError(
                f"the prompt of {whose} takes {pictures} tokens for its {len(prompt.media)} pictures and cannot be cut to fit "
                f"policy.max_length={max_length} with {len(kept)} response tokens; raise max_length or lower policy.max_pixels"
            )
        gone = set(loose[:surplus])
        ids = tuple(token for place, token in enumerate(prompt.ids) if place not in gone)
        return Encoded(ids, kept, surplus, cut, prompt.media, response.media)

    # pictures

    def probe_medium(self) -> tuple[Medium, tuple[int, ...]]:
        """Return a made-up picture, to try a model on, and the ids that stand for it."""
        block, tensors = self._process(_probe_picture(*PROBE_SIZES[0]))
        return Picture("probe", self._placeholders(block), lambda: tensors, block, PROBE_SIZES[0]), block

    def _picture(self, ref: MediaRef, media: MediaSource | None, several: bool) -> Picture:
        """Return the picture, not yet decoded. ``several``: there are others beside it."""
        if media is None:
            raise RecordError(f"picture {ref.sha256[:12]} cannot be opened: the prompt came without its media source")
        several &= self.among_several
        size = self._size(media.read(ref))
        if (size, several) not in self.blocks:
            self.blocks[size, several] = self._process(load_picture(self.codec, media.read(ref)), several)[0]
        block = self.blocks[size, several]
        key = f"{ref.sha256}-{self.settings}" + "-among-several" * several
        return Picture(key, self._placeholders(block), partial(self._load, ref, media, several), block, size)

    def _load(self, ref: MediaRef, media: MediaSource, several: bool) -> Mapping[str, Tensor]:
        return self._process(load_picture(self.codec, media.read(ref)), several)[1]

    def _process(self, picture: Image.Image, several: bool = False) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        """Return the ids that stand for one picture, and the tower's inputs."""
        copies = 1 + several
        text = self.placeholder * copies
        output = self.processor(text=[text], images=[[picture] * copies], return_tensors="pt", add_special_tokens=False)
        ids = output["input_ids"][0].tolist()
        bare = self.tokenizer(self._completed(text), add_special_tokens=False)["input_ids"]
        before = bare.index(self.placeholder_id)
        after = len(bare) - before - copies
        return tuple(ids[before : len(ids) - after][: (len(ids) - before - after) // copies]), {
            name: value[: max(1, len(value) // copies)]
            for name, value in output.items()
            if name not in TEXT_OUTPUTS and isinstance(value, Tensor)
        }

    def _placeholders(self, ids: Sequence[int]) -> int:
        return sum(token in self.media_ids for token in ids)

    def _size(self, data: bytes) -> tuple[int, int]:
        """Return width and height as decoded, read from the header."""
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ORIENTATION, 1) >= 5
        return (height, width) if turned else (width, height)

    def _with_blocks(self, ids: Sequence[int], pictures: Sequence[Picture]) -> Piece:
        rest = iter(pictures)
        blocks = [next(rest).block if token == self.placeholder_id else (token,) for token in ids]
        return Piece(tuple(token for block in blocks for token in block), tuple(pictures))

    def _places_of_pictures(self, piece: Piece) -> set[int]:
        """Return where the blocks of the pictures stand."""
        places: set[int] = set()
        end = 0
        for picture in piece.media:
            assert isinstance(picture, Picture)
            first, inner = (
                next(place for place, token in enumerate(ids) if token in self.media_ids)
                for ids in (piece.ids[end:], picture.block)
            )
            start = end + first - inner
            end = start + len(picture.block)
            places.update(range(start, end))
        return places

    def _refuse_spelt_out(self, ids: Sequence[int], pictures: int) -> None:
        """Raise `RecordError` where text of a prompt would be taken for pictures, or pictures are missing."""
        for token in {self.placeholder_id, *self.media_ids}:
            found, due = ids.count(token), pictures if token == self.placeholder_id else 0
            if found != due:
                raise RecordError(
                    f"a prompt with {pictures} pictures is rendered with {found} of {self.tokenizer.decode([token])!r}, expected "
                    f"{due}: "
                    + ("its text spells the placeholder out; remove it" if found > due else "the chat template drops pictures")
                )

    def _known(self, parts: Sequence[TextPart | MediaPart]) -> Sequence[TextPart | MediaPart]:
        for part in parts:
            if isinstance(part, MediaPart) and part.media.modality != "image":
                raise RecordError(
                    f"a message holds a {part.media.modality} part, but this policy reads text and images; "
                    "leave these records out with data.tags"
                )
        return parts

    # what the processor wants

    def _template_takes_lists(self, tokenizer: Any) -> bool:
        """Try whether the chat template prints a placeholder for a list of parts; older templates want text."""
        from jinja2 import TemplateError

        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
        try:
            rendered = str(tokenizer.apply_chat_template([turn], tokenize=False))
        except (TemplateError, TypeError):
            return False
        return rendered.count(self.placeholder) == 1 and "?" in rendered

    def _completed(self, text: str) -> str:
        """Return a rendered prompt with what the processor adds to texts (PaliGemma: a start token behind the pictures)."""
        pictures = [Image.new("RGB", PROBE_SIZES[0])] * text.count(self.placeholder)
        return str(self.processor.prepare_inputs_layout(images=[pictures], text=[text])[1][0]) if pictures else text

    def _whole(self, text: str, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Return the processor's own ids for a rendered prompt with pictures of these sizes."""
        blanks = [Image.new("RGB", size) for size in sizes]
        output = self.processor(text=[text], images=[blanks], return_tensors="pt", add_special_tokens=not self.uses_template)
        return tuple(output["input_ids"][0].tolist())

    def _learn_layout(self) -> None:
        """Compare with the processor's ids for a prompt with two pictures of unequal size; find out what they depend on."""
        pictures = [_probe_picture(*size) for size in PROBE_SIZES]
        # Text between the pictures, as in real prompts. The rendered text already has the special tokens it needs.
        text = f"{self.placeholder}a b{self.placeholder}c"
        expected = self.processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        ids = self.tokenizer(self._completed(text), add_special_tokens=False)["input_ids"]
        for self.among_several in (False, True):
            blocks = [self._process(picture, self.among_several)[0] for picture in pictures]
            found = self._with_blocks(ids, [Picture("", 0, dict, block) for block in blocks]).ids
            if list(found) == expected.tolist():
                return
            self.in_context = self._placeholders(found) == self._placeholders(expected.tolist())
            if self.in_context:
                return
        raise ConfigError(
            f"{type(self.processor).__name__} lays out prompts in a way that this policy does not know: for "
            f"{text!r} it gives {len(expected)} ids, pictures one by one give {len(found)}"
        )


def load_picture(codec: ImageModality, data: bytes) -> Image.Image:
    return codec.decode(data)


def _probe_picture(width: int, height: int) -> Image.Image:
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2) % 256
    return Image.fromarray(np.stack([ramp, ramp[:, ::-1], 255 - ramp], -1).astype(np.uint8))


def _description(processor: Any) -> str:
    """Return the processor's settings as text: other settings make other features of the same picture."""
    return json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
