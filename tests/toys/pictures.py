"""Two small pictures of unlike shape, and prompts that show them."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

from polyalign.records.samples import MediaSource, Sample
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.records.store import MemoryMedia

SIZES = ((24, 24), (40, 20))  # width and height


def picture(number: int) -> Image.Image:
    """Return noise, the same every time."""
    width, height = SIZES[number]
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8))


@cache
def album() -> tuple[MediaSource, tuple[MediaPart, ...]]:
    """Return the pictures as parts of messages, and what opens them."""
    media, parts = MemoryMedia(), []
    for number in range(len(SIZES)):
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        parts.append(MediaPart(media=media.add(buffer.getvalue(), "image", "image/png")))
    return media, tuple(parts)


def parts_of(content: tuple[int | str, ...]) -> tuple[TextPart | MediaPart, ...]:
    """Return words and pictures (by number) as parts of a message."""
    return tuple(album()[1][part] if isinstance(part, int) else TextPart(text=part) for part in content)


def asked(*content: int | str) -> tuple[Message, ...]:
    return (Message(role="user", parts=parts_of(content)),)


def sample(prompt: tuple[Message, ...], *response: int | str) -> Sample:
    return Sample("made up", prompt, parts_of(response), "made up", media=album()[0])
