"""ImageNet features of EfficientNet-Lite0 (Tan and Le, 2019; Lite variant 2020): a judge that owes nothing to our own models.

The architecture is timm's ``tf_efficientnet_lite0``; the weights are the asset of that name, whose parameter names
(those of the ``efficientnet_lite_pytorch`` package) are translated here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling
from safetensors.torch import load_file
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.encoders import Encoder
from polyalign.errors import PolyalignError
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign_image.clip import picture_key
from polyalign_image.config import EfficientNetConfig

BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
TEXTURE_STAGES = 3  # of 16, 24 and 40 channels, at half to an eighth of the resolution
MEAN, DEVIATION = 127.0, 128.0  # of the pixels 0 to 255, as the network was trained


class EfficientNetLite0(Encoder):
    """Rows of ``[N, 1280]`` (final) or ``[N, 1256]`` (texture), not normalised.

    Pictures are scaled to a square, aspect not kept, so that all of the picture is judged.
    """

    name = "efficientnet-lite0"

    def __init__(self, config: EfficientNetConfig) -> None:
        self.config = config
        self.device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = load_efficientnet_lite0(Path(resolve_model(config.model))).eval().requires_grad_(False).to(self.device)
        self._fingerprint = ""

    @torch.no_grad()
    def encode_media(self, media: Sequence[Image]) -> Tensor:
        size = self.config.batch_size
        rows = [self._embed(media[start : start + size]) for start in range(0, len(media), size)]
        return torch.cat(rows) if rows else torch.empty(0, 0)

    def fingerprint(self) -> str:
        if not self._fingerprint:
            settings = f"{self.config.size} {self.config.features}"
            self._fingerprint = weights_fingerprint(self.network.state_dict().items(), type(self).__name__, settings)
        return self._fingerprint

    def content_key(self, medium: Image) -> str:
        return picture_key(medium)

    def _embed(self, pictures: Sequence[Image]) -> Tensor:
        side = self.config.size
        scaled = [np.asarray(picture.convert("RGB").resize((side, side), Resampling.BICUBIC)) for picture in pictures]
        pixels = torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2).float().to(self.device)  # [N, 3, side, side]
        pixels = (pixels - MEAN) / DEVIATION
        if self.config.features == "final":
            features: Tensor = self.network.forward_head(self.network.forward_features(pixels), pre_logits=True)
        else:
            stages = self.network.forward_intermediates(
                pixels, indices=list(range(TEXTURE_STAGES)), stop_early=True, intermediates_only=True
            )
            features = torch.cat([second_moments(maps) for maps in stages], dim=1)
        return features.float().cpu()


def second_moments(maps: Tensor) -> Tensor:
    """Return ``[N, C (C + 1) / 2]``: the mean over places of every product of two channels of ``[N, C, H, W]``.

    This is the style of a picture in the sense of Gatys et al. (2016): which strokes go together, not where.
    """
    flat = maps.flatten(2)
    products = flat @ flat.transpose(1, 2) / flat.shape[2]  # [N, C, C]
    row, column = torch.triu_indices(flat.shape[1], flat.shape[1])
    return products[:, row, column]


def load_efficientnet_lite0(folder: Path) -> Any:
    """Return the network with the weights found in ``folder``. Raises `PolyalignError` if there are none, or others."""
    import timm

    file = folder / "model.safetensors"
    if not file.is_file():
        raise PolyalignError(
            f"no weights of EfficientNet-Lite0 in {folder}: expected model.safetensors. "
            "Install them: polyalign assets install efficientnet-lite0"
        )
    weights = load_file(file)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    try:
        network.load_state_dict({timm_name(name): tensor for name, tensor in weights.items()})
    except (RuntimeError, KeyError) as error:
        raise PolyalignError(f"{file} does not hold the weights of EfficientNet-Lite0: {error}") from error
    return network


_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # it does not expand
_OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_name(name: str) -> str:
    """Translate one parameter name: ``_blocks.4._bn0.weight`` to ``blocks.2.1.bn1.weight``. Raises KeyError."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        layer, _, rest = name.partition(".")
        return f"{_TOP[layer]}.{rest}"
    index, layer, rest = int(match[1]), match[2], match[3]
    layers = _FIRST_BLOCK if index == 0 else _OTHER_BLOCKS
    for stage, count in enumerate(BLOCKS_PER_STAGE):
        if index < count:
            return f"blocks.{stage}.{index}.{layers[layer]}.{rest}"
        index -= count
    raise KeyError(name)
