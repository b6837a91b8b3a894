"""Small pictures as a mosaic: every patch of 4 x 4 pixels is written as the number of the nearest patch in a codebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from polyalign_any_to_any.media.base import Codebook, MediaTokenizer

PATCH = 4  # pixels, each way


class PictureTokenizer(MediaTokenizer):
    """Pictures of ``side`` x ``side`` pixels, patch by patch in reading order."""

    kind: ClassVar[str] = "vq-picture"
    modality = "image"

    def __init__(self, side: int = 32, codes: int = 512) -> None:
        self.side, self.codes = side, codes
        self.codebook = Codebook(codes, 3 * PATCH**2).requires_grad_(False)
        self.length = self.longest = (side // PATCH) ** 2

    @property
    def settings(self) -> dict[str, Any]:
        return {"side": self.side, "codes": self.codes}

    @property
    def network(self) -> nn.Module:
        return self.codebook

    def encode(self, medium: Image.Image) -> list[int]:
        codes: list[int] = self.codebook.nearest(patches(as_pixels(medium, self.side))).tolist()
        return codes

    def decode(self, codes: Sequence[int]) -> Image.Image:
        count = self.side // PATCH
        mosaic = self.codebook.vectors[torch.tensor(codes)].reshape(count, count, 3, PATCH, PATCH)
        return as_picture(mosaic.permute(2, 0, 3, 1, 4).reshape(3, self.side, self.side))


def patches(pixels: Tensor) -> Tensor:
    """Return the patches ``[N, 48]`` of pixels ``[3, S, S]`` in reading order."""
    rows = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # [3, n, n, PATCH, PATCH]
    return rows.permute(1, 2, 0, 3, 4).reshape(-1, 3 * PATCH**2)


def as_pixels(picture: Image.Image, side: int) -> Tensor:
    """Return pixels ``[3, side, side]`` float32 in [-1, 1]."""
    scaled = picture.convert("RGB").resize(
        (side, side), Image.Resampling.BOX if picture.width > side else Image.Resampling.BICUBIC
    )
    return torch.from_numpy(np.array(scaled)).movedim(-1, 0).float() / 127.5 - 1


def as_picture(pixels: Tensor) -> Image.Image:
    """Return the picture of pixels ``[3, S, S]`` in [-1, 1]; what lies outside is clipped."""
    return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).cpu().numpy())
