"""From a sample's response to the pixels that a VAE reads."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polyalign.policies.pipelines.collator import open_media
from polyalign.records.samples import Sample

READING = "shorter side to resolution by Lanczos, centre crop, [-1, 1]"


def open_picture(sample: Sample) -> Image.Image:
    """Return the response's picture as RGB. Raises `MediaError` naming the sample."""
    picture: Image.Image = open_media(sample, "image")
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
