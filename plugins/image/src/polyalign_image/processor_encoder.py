"""From messages with pictures to token ids and encoder inputs, by a transformers processor.

The processor is asked for one picture at a time: how many and which tokens stand for it (the same for pictures of one size),
and the tensors that the model's tower takes. So a picture that many prompts share is prepared once per batch, and length
checks before training need no pixels. When the encoder is built, its ids for a prompt with two pictures are compared with
the processor's own for the whole prompt.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
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

TEXT_OUTPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids")
ORIENTATION = 0x0112  # the EXIF tag; values from 5 on turn the picture on its side
PROBE_SIZES = ((64, 48), (48, 64))  # width and height


class ProcessorEncoder(PromptResponseEncoder):
    """Renders prompts with pictures. ``media_id``: the id of the tokens that features take the place of, from the model's
    configuration (some processors name the token in front of them instead)."""

    def __init__(self, processor: Any, media_id: int, chat_template: Literal["auto", "none"] = "auto") -> None:
        self.processor, self.codec = processor, ImageModality()
        self.settings = hashlib.blake2b(_description(processor).encode(), digest_size=8).hexdigest()
        self.blocks: dict[tuple[int, int], tuple[int, ...]] = {}
        tokenizer = processor.tokenizer
        if tokenizer.chat_template is None:
            tokenizer.chat_template = processor.chat_template
        self.placeholder = str(processor.image_token)
        self.as_list = True
        self.as_list = chat_template == "none" or not tokenizer.chat_template or self._template_takes_lists(tokenizer)
        super().__init__(tokenizer, chat_template)
        self.media_ids = frozenset({media_id})
        (self.placeholder_id,) = tokenizer(self.placeholder, add_special_tokens=False)["input_ids"]
        self._check_against_the_processor()

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

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        refs = [part.media for message in prompt for part in message.parts if isinstance(part, MediaPart)]
        ids = self.prompt_ids(prompt)
        found = ids.count(self.placeholder_id)
        if found != len(refs):
            raise RecordError(
                f"a prompt with {len(refs)} pictures is rendered with {found} placeholders {self.placeholder!r}: "
                + ("its text spells the placeholder out; remove it" if found > len(refs) else "the chat template drops pictures")
            )
        pictures = iter([self.medium(ref, media) for ref in refs])
        return self._with_blocks(ids, pictures)

    def response(self, response: Sequence[TextPart | MediaPart], media: MediaSource | None) -> Piece:
        ids: list[int] = []
        found: list[Medium] = []
        for part in self._known(response):
            if isinstance(part, MediaPart):
                medium, block = self.medium(part.media, media)
                ids += block
                found.append(medium)
            else:
                ids += self.tokenizer(part.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return Piece((*ids, *self.end_ids), tuple(found))

    def fit(self, prompt: Piece, response: Piece, max_length: int, max_response: int, whose: str) -> Encoded:
        """As in the base class, but what is dropped from the prompt is ordinary text only: never a picture's tokens, nor the
        special tokens that give the conversation its form. Raises `RecordError` where that is not enough."""
        cut = max(0, len(response.ids) - max_response)
        kept = response.ids[: len(response.ids) - cut]
        if cut and any(token in self.media_ids for token in response.ids[len(kept) :]):
            raise RecordError(f"the pictures in the response of {whose} do not fit policy.max_response={max_response}; raise it")
        surplus = max(0, len(prompt.ids) + len(kept) - max_length)
        if not surplus:
            return Encoded(prompt.ids, kept, 0, cut, prompt.media, response.media)
        needed = self.media_ids | set(self.tokenizer.all_special_ids)
        loose = [place for place, token in enumerate(prompt.ids) if token not in needed]
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

    def medium(self, ref: MediaRef, media: MediaSource | None) -> tuple[Medium, tuple[int, ...]]:
        """Return the picture, not yet decoded, and the ids that stand for it."""
        if media is None:
            raise RecordError(f"picture {ref.sha256[:12]} cannot be opened: the prompt came without its media source")
        load = partial(self._load, ref, media)
        size = self._size(media.read(ref))
        if size not in self.blocks:
            self.blocks[size] = self._process(load_picture(self.codec, media.read(ref)))[0]
        block = self.blocks[size]
        return Medium(f"{ref.sha256}-{self.settings}", sum(token in self.media_ids for token in block), load), block

    def probe_medium(self) -> tuple[Medium, tuple[int, ...]]:
        """Return a made-up picture, to try a model on."""
        block, tensors = self._process(_probe_picture(*PROBE_SIZES[0]))
        return Medium("probe", sum(token in self.media_ids for token in block), lambda: tensors), block

    def _load(self, ref: MediaRef, media: MediaSource) -> Mapping[str, Tensor]:
        return self._process(load_picture(self.codec, media.read(ref)))[1]

    def _process(self, picture: Image.Image) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        """Return the ids that stand for one picture, and the tower's inputs."""
        output = self.processor(text=[self.placeholder], images=[[picture]], return_tensors="pt")
        ids = output["input_ids"][0].tolist()
        bare = self.tokenizer(self.placeholder)["input_ids"]
        before = bare.index(self.placeholder_id)
        after = len(bare) - before - 1
        return tuple(ids[before : len(ids) - after]), {
            name: value for name, value in output.items() if name not in TEXT_OUTPUTS and isinstance(value, Tensor)
        }

    def _size(self, data: bytes) -> tuple[int, int]:
        """Return width and height as decoded, read from the header."""
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ORIENTATION, 1) >= 5
        return (height, width) if turned else (width, height)

    def _with_blocks(self, ids: Sequence[int], pictures: Any) -> Piece:
        full: list[int] = []
        media: list[Medium] = []
        for token in ids:
            if token != self.placeholder_id:
                full.append(token)
                continue
            medium, block = next(pictures)
            full += block
            media.append(medium)
        return Piece(tuple(full), tuple(media))

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

    def _check_against_the_processor(self) -> None:
        """Compare with the processor's ids for a prompt with two pictures of unequal size."""
        pictures = [_probe_picture(*size) for size in PROBE_SIZES]
        # Text between the pictures, as in real prompts. The rendered text already has the special tokens it needs.
        text = f"{self.placeholder}a b{self.placeholder}c"
        expected = self.processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        blocks = iter([(Medium("", 0, dict), self._process(picture)[0]) for picture in pictures])
        found = self._with_blocks(self.tokenizer(text, add_special_tokens=False)["input_ids"], blocks).ids
        if list(found) != expected.tolist():
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
