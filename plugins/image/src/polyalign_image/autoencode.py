"""An encoder that looks at pictures through an autoencoder: real pictures as a latent diffusion model would show them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.encoders import Encoder
from polyalign.errors import PolyalignError
from polyalign.policies.fingerprint import weights_fingerprint

BATCH = 32


class ThroughAutoencoder(Encoder):
    """Embeds what a diffusers ``AutoencoderKL`` makes of each picture: encoded to the latent mean, decoded again.

    A model that works in those latents cannot draw better than this, so a judge should know how its decoder draws.
    ``model``: a folder of the autoencoder or of a whole pipeline, ``zoo:NAME``, or a hub id.
    """

    def __init__(self, inner: Encoder, model: str) -> None:
        self.inner, self.name = inner, inner.name
        self.autoencoder = _load(model)
        weights = weights_fingerprint(self.autoencoder.state_dict().items())
        self._fingerprint = hashlib.blake2b(f"{inner.fingerprint()} {weights}".encode(), digest_size=16).hexdigest()

    @torch.no_grad()
    def redrawn(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Return each picture after encoding and decoding, in its own size."""
        return [result for start in range(0, len(pictures), BATCH) for result in self._redraw(pictures[start : start + BATCH])]

    def encode_media(self, media: Sequence[Image.Image]) -> Tensor:
        return self.inner.encode_media(self.redrawn(media))

    def fingerprint(self) -> str:
        return self._fingerprint

    def content_key(self, medium: Image.Image) -> str:
        return self.inner.content_key(medium)

    def _redraw(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, picture in enumerate(pictures):
            by_size.setdefault(self._allowed(picture.size), []).append(index)
        results: dict[int, Image.Image] = {}
        for size, indices in by_size.items():
            scaled = [np.array(pictures[index].convert("RGB").resize(size)) for index in indices]
            pixels = torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2).float() / 127.5 - 1  # [N, 3, H, W]
            decoded = self.autoencoder.decode(self.autoencoder.encode(pixels).latent_dist.mean).sample
            levels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            for index, level in zip(indices, levels, strict=True):
                results[index] = Image.fromarray(level).resize(pictures[index].size)
        return [results[index] for index in range(len(pictures))]

    def _allowed(self, size: tuple[int, int]) -> tuple[int, int]:
        """The autoencoder halves the sides once between each two of its blocks, so they must be so often even."""
        step = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        width, height = (max(step, round(side / step) * step) for side in size)
        return width, height


def _load(model: str) -> Any:
    try:
        from diffusers import AutoencoderKL
    except ModuleNotFoundError as error:
        raise PolyalignError(
            "looking through an autoencoder needs the package diffusers: pip install polyalign-text-to-image"
        ) from error
    where = resolve_model(model)
    whole = Path(where).is_dir() and not (Path(where) / "config.json").is_file()  # a pipeline keeps it in its folder vae
    try:
        autoencoder = AutoencoderKL.from_pretrained(where, subfolder="vae" if whole else None)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PolyalignError(f"{model!r} holds no AutoencoderKL of diffusers: {reason}") from error
    return autoencoder.float().eval().requires_grad_(False)
