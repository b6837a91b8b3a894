"""Small pictures as two codes per 8 x 8 pixels: an autoencoder over pixels with a codebook in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from polyalign_any_to_any.media.base import Codebook, MediaTokenizer
from polyalign_any_to_any.media.pictures import as_picture, as_pixels

CELL = 8  # pixels, each way
PER_CELL = 2  # codes: halves of a cell's latent, each the nearest of one codebook


class DrawingCodec(nn.Module):
    """Pixels ``[N, 3, S, S]`` to latents ``[N, 2 (S/8)^2, D]``, two of each cell in reading order, and back."""

    def __init__(self, codes: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, 2, 1), nn.SiLU(), nn.Conv2d(width // 2, width, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(width, width, 4, 2, 1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, PER_CELL * latent, 1),
        )  # fmt: skip
        self.codebook = Codebook(codes, latent)
        self.decoder = nn.Sequential(
            nn.Conv2d(PER_CELL * latent, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(width // 2, 3, 4, 2, 1),
        )  # fmt: skip

    def latents(self, pixels: Tensor) -> Tensor:
        cells = self.encoder(pixels).flatten(2).mT  # [N, cells, 2 D]
        return cells.unflatten(2, (PER_CELL, -1)).flatten(1, 2)  # type: ignore[no-any-return]

    def drawn(self, quantised: Tensor) -> Tensor:
        """Return pixels of latents ``[N, 2 cells, D]``."""
        cells = quantised.unflatten(1, (-1, PER_CELL)).flatten(2)  # [N, cells, 2 D]
        side = round(cells.shape[1] ** 0.5)
        return self.decoder(cells.mT.unflatten(2, (side, side)))  # type: ignore[no-any-return]


class DrawingTokenizer(MediaTokenizer):
    """Pictures of ``side`` x ``side`` pixels, a multiple of 8."""

    kind: ClassVar[str] = "vq-drawing"
    modality = "image"

    def __init__(self, side: int = 32, codes: int = 512, width: int = 128, latent: int = 8) -> None:
        self.side, self.codes, self.width, self.latent = side, codes, width, latent
        self.length = self.longest = PER_CELL * (side // CELL) ** 2
        self.codec = DrawingCodec(codes, width, latent).eval().requires_grad_(False)

    @property
    def settings(self) -> dict[str, Any]:
        return {"side": self.side, "codes": self.codes, "width": self.width, "latent": self.latent}

    @property
    def network(self) -> nn.Module:
        return self.codec

    @torch.no_grad()
    def encode(self, medium: Image.Image) -> list[int]:
        latents = self.codec.latents(as_pixels(medium, self.side)[None])
        codes: list[int] = self.codec.codebook.nearest(latents).flatten().tolist()
        return codes

    @torch.no_grad()
    def decode(self, codes: Sequence[int]) -> Image.Image:
        return as_picture(self.codec.drawn(self.codec.codebook.vectors[torch.tensor(codes)][None])[0])
