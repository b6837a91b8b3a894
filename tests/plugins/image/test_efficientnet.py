"""EfficientNet-Lite0: names of weights, features, and, with the real weights, what it recognises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from polyalign.assets import resolve_model
from polyalign.errors import PolyalignError
from polyalign_image.config import EfficientNetConfig
from polyalign_image.efficientnet import _FIRST_BLOCK, _OTHER_BLOCKS, _TOP, EfficientNetLite0, timm_name

BLOCKS = 16


def original_names() -> set[str]:
    """The names in the published file: a stem, 16 blocks of which the first has no expansion, a head and a classifier."""
    layers = [*_TOP]
    for block in range(BLOCKS):
        layers += [f"_blocks.{block}.{layer}" for layer in (_FIRST_BLOCK if block == 0 else _OTHER_BLOCKS)]
    names = set()
    for layer in layers:
        statistics = ("bias", "running_mean", "running_var", "num_batches_tracked") if "_bn" in layer else ()
        names |= {f"{layer}.{part}" for part in ("weight", *statistics)} | ({"_fc.bias"} if layer == "_fc" else set())
    return names


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A random network saved under the published names, and the network itself."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    state = network.state_dict()
    folder = tmp_path_factory.mktemp("efficientnet")
    save_file({name: state[timm_name(name)].clone() for name in original_names()}, folder / "model.safetensors")
    return folder, network


@pytest.fixture(scope="module")
def real() -> EfficientNetLite0:
    try:
        resolve_model("asset:efficientnet-lite0")
    except PolyalignError as error:
        pytest.skip(str(error))
    return EfficientNetLite0(EfficientNetConfig(device="cpu"))


def test_every_published_name_is_translated_to_a_parameter_of_its_own() -> None:
    ours = {timm_name(name) for name in original_names()}
    assert len(original_names()) == 296  # the number of tensors in the published file
    assert ours == set(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    assert timm_name("_blocks.4._bn0.weight") == "blocks.2.1.bn1.weight"
    assert timm_name("_blocks.15._project_conv.weight") == "blocks.6.0.conv_pwl.weight"


def test_features_are_the_networks_own(random_weights: tuple[Path, torch.nn.Module], pictures: list[Image.Image]) -> None:
    """The pooled features before the classifier: applying the classifier to them gives the network's logits."""
    folder, network = random_weights
    encoder = EfficientNetLite0(EfficientNetConfig(model=str(folder), size=64, device="cpu", batch_size=2))
    squares = [picture.resize((64, 64), Image.Resampling.BICUBIC) for picture in pictures]
    pixels = torch.stack([torch.from_numpy(np.array(square)).permute(2, 0, 1).float() for square in squares])
    with torch.no_grad():
        expected = network((pixels - 127) / 128)
        found = network.classifier(encoder.encode_media(pictures))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_texture_holds_the_second_moments_of_early_stages(
    random_weights: tuple[Path, torch.nn.Module], pictures: list[Image.Image]
) -> None:
    """Of three stages of 16, 24 and 40 channels: E[x_i x_j] over places, each pair i <= j once, by a plain double loop."""
    folder, network = random_weights
    config = EfficientNetConfig(model=str(folder), size=64, features="texture", device="cpu")
    found = EfficientNetLite0(config).encode_media(pictures[:1])[0]
    square = pictures[0].resize((64, 64), Image.Resampling.BICUBIC)
    pixels = (torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() - 127) / 128
    with torch.no_grad():
        first, *_ = network.forward_intermediates(pixels, intermediates_only=True)
    maps = first[0].double()
    expected = [(maps[i] * maps[j]).mean() for i in range(16) for j in range(i, 16)]
    torch.testing.assert_close(found[: len(expected)].double(), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_fingerprint_follows_weights_and_settings(random_weights: tuple[Path, torch.nn.Module]) -> None:
    folder, _ = random_weights
    one, same, smaller, texture = (
        EfficientNetLite0(EfficientNetConfig(model=str(folder), device="cpu", **options)).fingerprint()
        for options in ({}, {"batch_size": 1}, {"size": 64}, {"features": "texture"})
    )
    assert one == same
    assert len({one, smaller, texture}) == 3


def test_it_embeds_no_text(random_weights: tuple[Path, torch.nn.Module]) -> None:
    with pytest.raises(PolyalignError, match="'efficientnet-lite0' embeds no text; choose another, such as 'clip'"):
        EfficientNetLite0(EfficientNetConfig(model=str(random_weights[0]))).encode_text(["a rose"])


def test_a_folder_without_or_with_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolyalignError, match=r"expected model.safetensors. Install them: polyalign assets install"):
        EfficientNetLite0(EfficientNetConfig(model=str(tmp_path)))
    save_file({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(PolyalignError, match="does not hold the weights of EfficientNet-Lite0"):
        EfficientNetLite0(EfficientNetConfig(model=str(tmp_path)))


def test_the_real_weights_recognise_a_palace_and_a_daisy(real: EfficientNetLite0) -> None:
    """Two photographs that scikit-learn ships: a Chinese pavilion (ImageNet's 698 is palace) and a flower (985 is daisy).

    By chance, a class is among the five best of 1,000 once in 200 times.
    """
    from sklearn.datasets import load_sample_image

    photographs = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    with torch.no_grad():
        best = real.network.classifier(real.encode_media(photographs)).topk(5).indices.tolist()
    assert 698 in best[0]
    assert best[1][0] == 985
