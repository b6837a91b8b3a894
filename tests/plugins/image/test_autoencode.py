"""Pictures looked at through an autoencoder equal what diffusers computes by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyalign.encoders import CachedEncoder, Encoder
from polyalign.errors import PolyalignError
from polyalign_image.autoencode import ThroughAutoencoder
from polyalign_image.clip import picture_key

diffusers = pytest.importorskip("diffusers", reason="looking through an autoencoder needs diffusers")


class Pixels(Encoder):
    """A picture's embedding is its pixels, so that what the encoder saw can be read off."""

    name = "pixels"

    def encode_media(self, media: list[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(picture)).float().flatten() for picture in media])

    def fingerprint(self) -> str:
        return "pixels"

    def content_key(self, medium: Image.Image) -> str:
        return picture_key(medium)


def autoencoder(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    blocks = 2
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laid out as in a pipeline: the autoencoder in the folder ``vae``."""
    root = tmp_path_factory.mktemp("pipeline")
    autoencoder(0).save_pretrained(root / "vae")
    return root


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_redrawn_picture_is_the_decoded_latent_mean(folder: Path) -> None:
    looked = ThroughAutoencoder(Pixels(), str(folder)).encode_media([picture(16, 24)])
    pixels = torch.from_numpy(np.array(picture(16, 24))).permute(2, 0, 1)[None] / 127.5 - 1
    model = autoencoder(0)
    with torch.no_grad():
        decoded = model.decode(model.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    expected = ((decoded[0].permute(1, 2, 0) + 1) * 127.5).round().flatten()[None]
    assert (looked - expected).abs().max() <= 1
    assert (looked - Pixels().encode_media([picture(16, 24)])).abs().mean() > 10  # it did change


def test_pictures_of_unlike_and_odd_sizes_come_back_in_order_and_size(folder: Path) -> None:
    encoder = ThroughAutoencoder(Pixels(), str(folder / "vae"))
    pictures = [picture(16, 24), picture(15, 9), picture(16, 24), picture(1, 1)]
    redrawn = encoder.redrawn(pictures)
    assert [each.size for each in redrawn] == [each.size for each in pictures]
    for index, each in enumerate(pictures):
        (alone,) = encoder.redrawn([each])
        assert np.abs(np.asarray(alone, int) - np.asarray(redrawn[index], int)).max() <= 1


def test_embeddings_through_two_autoencoders_are_cached_apart(folder: Path, tmp_path: Path) -> None:
    autoencoder(1).save_pretrained(tmp_path / "other")
    encoders = [Pixels(), ThroughAutoencoder(Pixels(), str(folder)), ThroughAutoencoder(Pixels(), str(tmp_path / "other"))]
    assert len({encoder.fingerprint() for encoder in encoders}) == 3
    rows = [CachedEncoder(encoder, tmp_path / "cache").encode_media([picture(16, 24)]) for encoder in encoders]
    assert not any(torch.equal(rows[first], rows[second]) for first, second in ((0, 1), (0, 2), (1, 2)))


def test_a_folder_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolyalignError, match="holds no AutoencoderKL of diffusers: "):
        ThroughAutoencoder(Pixels(), str(tmp_path))
