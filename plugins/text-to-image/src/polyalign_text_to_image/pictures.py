"""From a sample's response to the pixels that a VAE reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polyalign.errors import MediaError, RecordError
from polyalign.plugins.registry import registry
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, MediaRef, Message, text_of

PREPROCESSING = "shorter side to resolution by Lanczos, centre crop, [-1, 1]"


def caption_of(prompt: Sequence[Message]) -> str:
    """Return the text of the last user message. Raises `RecordError` if there is none."""
    for message in reversed(prompt):
        if message.role == "user":
            return text_of(message.parts)
    raise RecordError("the prompt has no user message, but a text-to-image model draws from the last one's text; add one")


def picture_ref(sample: Sample) -> MediaRef:
    """Return the one picture of the response. Raises `RecordError` if it is not exactly one image."""
    media = [part.media for part in sample.response if isinstance(part, MediaPart)]
    if len(media) != 1 or len(sample.response) != 1 or media[0].modality != "image":
        found = ", ".join(part.media.modality if isinstance(part, MediaPart) else "text" for part in sample.response)
        raise RecordError(f"the response of sample {sample.id!r} is [{found}], but a text-to-image model needs exactly one image")
    return media[0]


@lru_cache(maxsize=1)
def image_modality() -> Any:
    """Return the codec that the image plugin registers."""
    return registry().get("modalities", "image").load()()


def open_picture(sample: Sample) -> Image.Image:
    """Return the response's picture as RGB. Raises `MediaError` naming the sample."""
    ref = picture_ref(sample)
    if sample.media is None:
        raise MediaError(f"sample {sample.id!r} points at picture {ref.sha256[:12]}, but its data set has no media store")
    try:
        picture: Image.Image = image_modality().decode(sample.media.read(ref))
    except MediaError as error:
        raise MediaError(f"sample {sample.id!r}: {error}") from error
    return picture.convert("RGB")


def to_pixels(picture: Image.Image, resolution: int) -> Tensor:
    """Return ``[3, resolution, resolution]`` float32 in [-1, 1]: the shorter side scaled to resolution, the centre cut out."""
    width, height = picture.size
    scale = resolution / min(width, height)
    size = max(resolution, round(width * scale)), max(resolution, round(height * scale))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    picture = picture.crop((left, top, left + resolution, top + resolution))
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Return RGB pictures of ``pixels`` ``[N, 3, H, W]`` in [0, 1], rounded to 8 bits as diffusers does."""
    values = pixels.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray((picture * 255).round().astype(np.uint8)) for picture in values]
