"""The two things every image reward and judge reads from what it is given: the picture and its caption."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from polyalign.errors import MediaError
from polyalign.records.schema import Message, text_of
from polyalign.rewards.base import Judged


def pictures_of(items: Sequence[Judged]) -> list[Image]:
    """Return the outputs in RGB. Raises `MediaError` for an output that is no PIL image."""
    for position, item in enumerate(items):
        if not isinstance(item.output, Image):
            raise MediaError(f"item {position} is a {type(item.output).__name__}; expected a picture (PIL.Image.Image)")
    return [item.output.convert("RGB") for item in items]


def caption_of(prompt: Sequence[Message]) -> str:
    """Return the text of the user's messages, joined by a space."""
    return " ".join(text for message in prompt if message.role == "user" and (text := text_of(message.parts).strip()))
