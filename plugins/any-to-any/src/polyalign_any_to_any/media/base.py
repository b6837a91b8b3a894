"""A media tokenizer: a medium to a few whole numbers (codes) and back, so that a language model can read and write it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyalign.errors import ConfigError
from polyalign.plugins.specs import load_attribute
from polyalign.policies.fingerprint import weights_fingerprint

CONFIG, WEIGHTS = "media_tokenizer.json", "media_tokenizer.safetensors"
KINDS = {  # what a folder's configuration calls its tokenizer
    "encodec": "polyalign_any_to_any.media.codecs:EncodecTokenizer",
    "mimi": "polyalign_any_to_any.media.codecs:MimiTokenizer",
    "vq-drawing": "polyalign_any_to_any.media.drawings:DrawingTokenizer",
    "vq-picture": "polyalign_any_to_any.media.pictures:PictureTokenizer",
    "vq-speech": "polyalign_any_to_any.media.speech:SpeechTokenizer",
}


class MediaTokenizer(ABC):
    """Codes are 0 to ``codes`` - 1. ``length``: how many codes every medium has, None where it varies, then at most ``longest``;
    ``unit``: how many codes belong together (a frame of several codebooks), so that a medium always has a multiple of it."""

    kind: ClassVar[str]
    modality: str
    codes: int
    length: int | None
    longest: int
    unit: int = 1

    @abstractmethod
    def encode(self, medium: Any) -> list[int]:
        """Return the codes of a medium as its modality's codec decodes it. Raises `MediaError` where it is too long."""

    @abstractmethod
    def decode(self, codes: Sequence[int]) -> Any:
        """Return the medium that these codes stand for."""

    def allowed(self, place: int) -> range:
        """Return which codes may stand at a place of a medium (each codebook of a neural codec has its own). Default: all."""
        return range(self.codes)

    @property
    def settings(self) -> dict[str, Any]:
        """Return what, besides the weights, makes this tokenizer: JSON data that its constructor takes."""
        return {}

    @property
    def network(self) -> nn.Module | None:
        """Return the frozen network, where there is one."""
        return None

    def fingerprint(self) -> str:
        """Return a hash of settings and weights: equal fingerprints, equal codes."""
        weights: list[tuple[str, Tensor]] = list(self.network.state_dict().items()) if self.network is not None else []
        return weights_fingerprint(weights, self.kind, json.dumps(self.settings, sort_keys=True))

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps({"kind": self.kind, **self.settings}, indent=1) + "\n")
        if self.network is not None:
            weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
            save_file(weights, folder / WEIGHTS)


def open_tokenizer(folder: Path) -> MediaTokenizer:
    """Return the tokenizer that `MediaTokenizer.save` wrote into ``folder``. Raises `ConfigError`."""
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{str(folder)!r} holds no media tokenizer: there is no {CONFIG}")
    settings = json.loads((folder / CONFIG).read_text())
    kind = settings.pop("kind", None)
    if kind not in KINDS:
        raise ConfigError(f"{str(folder / CONFIG)!r} is of kind {kind!r}; expected one of {', '.join(KINDS)}")
    made: MediaTokenizer = load_attribute(KINDS[kind], kind)(**settings)
    if made.network is not None:
        weights = load_file(folder / WEIGHTS)
        made.network.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
        )
    return made


class Codebook(nn.Module):
    """Vectors ``[K, D]``; a latent is written as the number of its nearest one. Source: VQ-VAE, arXiv 1711.00937, equation 1."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.vectors: Tensor
        self.register_buffer("vectors", torch.randn(codes, width))

    def nearest(self, latents: Tensor) -> Tensor:
        """Return codes ``[...]`` of latents ``[..., D]``."""
        distance = latents.square().sum(-1, keepdim=True) - 2 * latents @ self.vectors.T + self.vectors.square().sum(-1)
        return distance.argmin(-1)
