"""Pictures as transformers processors take them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from polyalign.policies.media_kinds import MediaKind
from polyalign.policies.processor_encoder import ProcessorEncoder
from polyalign_image.modality import ImageModality

ORIENTATION = 0x0112  # the EXIF tag; values from 5 on turn the picture on its side
PROBE_SIZES = ((64, 48), (48, 64))  # width and height


class PictureKind(MediaKind):
    """Sizes are (width, height)."""

    modality, plural, shrink = "image", "pictures", "lower policy.max_pixels"

    def __init__(self, placeholder: str, media_id: int) -> None:
        super().__init__(placeholder, media_id)
        self.codec = ImageModality()

    def size(self, data: bytes) -> tuple[int, int]:
        """Return width and height as decoded, read from the header."""
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ORIENTATION, 1) >= 5
        return (height, width) if turned else (width, height)

    def open(self, data: bytes) -> Image.Image:
        return self.codec.decode(data)

    def blank(self, size: tuple[int, int]) -> Image.Image:
        return Image.new("RGB", size)

    def probe(self, number: int) -> Image.Image:
        width, height = PROBE_SIZES[number]
        ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2) % 256
        return Image.fromarray(np.stack([ramp, ramp[:, ::-1], 255 - ramp], -1).astype(np.uint8))

    def arguments(self, media: Sequence[Image.Image]) -> dict[str, Any]:
        return {"images": [list(media)]}


class PictureEncoder(ProcessorEncoder):
    """Renders prompts with pictures. ``media_id``: the id of the tokens that features take the place of."""

    def __init__(self, processor: Any, media_id: int, chat_template: Literal["auto", "none"] = "auto") -> None:
        super().__init__(processor, [PictureKind(str(processor.image_token), media_id)], chat_template)
