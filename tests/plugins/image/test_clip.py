"""CLIP embeddings equal what transformers and open_clip compute by themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from polyalign.errors import PolyalignError
from polyalign_image.clip import ClipEncoder, OpenClip, TransformersClip, picture_key
from polyalign_image.config import ClipConfig

TEXTS = ["a red rose", "a blue whale"]


def encoder(folder: Path, **options: object) -> ClipEncoder:
    return ClipEncoder(ClipConfig(model=str(folder), device="cpu", **options))


def test_transformers_layout_gives_the_librarys_own_cosines(transformers_clip: Path, pictures: list[Image.Image]) -> None:
    """`CLIPModel.forward` normalises both sides and multiplies by exp(logit_scale); we take the logits apart again."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    model = CLIPModel.from_pretrained(transformers_clip).eval()
    tokens = CLIPTokenizerFast.from_pretrained(transformers_clip)(TEXTS, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(transformers_clip)(pictures, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **pixels)
    ours = encoder(transformers_clip)
    assert isinstance(ours.model, TransformersClip)
    torch.testing.assert_close(ours.encode_media(pictures), out.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.encode_text(TEXTS), out.text_embeds, atol=1e-6, rtol=0)
    assert ours.logit_scale == pytest.approx(float(model.logit_scale.exp()))


def test_open_clip_layout_gives_the_librarys_own_embeddings(open_clip_folder: Path, pictures: list[Image.Image]) -> None:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{open_clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")
    model.eval()
    with torch.no_grad():
        expected_pictures = model.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
        expected_texts = model.encode_text(tokenizer(TEXTS), normalize=True)
    ours = encoder(open_clip_folder)
    assert isinstance(ours.model, OpenClip)
    torch.testing.assert_close(ours.encode_media(pictures), expected_pictures, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.encode_text(TEXTS), expected_texts, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["transformers_clip", "open_clip_folder"])
def test_rows_have_unit_length_and_do_not_depend_on_the_batch(
    layout: str, pictures: list[Image.Image], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    at_once, one_by_one = encoder(folder), encoder(folder, batch_size=1)
    texts = [*TEXTS, "a"]
    for whole, single in (
        (at_once.encode_media(pictures), one_by_one.encode_media(pictures)),
        (at_once.encode_text(texts), one_by_one.encode_text(texts)),
    ):
        assert whole.shape == (3, 24)
        assert whole.dtype == torch.float32
        torch.testing.assert_close(whole.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(whole, single, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["transformers_clip", "open_clip_folder"])
def test_a_text_past_the_context_is_cut(layout: str, request: pytest.FixtureRequest) -> None:
    rows = encoder(request.getfixturevalue(layout)).encode_text(["rose " * 100, "rose " * 200])
    torch.testing.assert_close(rows[0], rows[1])


@pytest.mark.parametrize("layout", ["transformers_clip", "open_clip_folder"])
def test_fingerprint_follows_weights_and_preprocessing_not_the_folder(
    layout: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(folder, tmp_path / "other")
    for name in ("preprocessor_config.json", "open_clip_config.json"):
        file = tmp_path / "other" / name
        if file.exists():
            file.write_text(file.read_text().replace("0.5,", "0.4,").replace("0.48145466", "0.4"))
    first, copy, other = encoder(folder), encoder(tmp_path / "copy"), encoder(tmp_path / "other")
    assert first.fingerprint() == copy.fingerprint() != other.fingerprint()
    assert "0x" not in first.model.settings  # an address would make every process's fingerprint its own
    with torch.no_grad():
        next(copy.model.module.parameters()).add_(1)
    copy._fingerprint = ""
    assert copy.fingerprint() != first.fingerprint()


def test_embeddings_carry_no_gradient_and_weights_are_frozen(transformers_clip: Path, pictures: list[Image.Image]) -> None:
    ours = encoder(transformers_clip)
    assert not ours.encode_media(pictures).requires_grad
    assert not any(parameter.requires_grad for parameter in ours.model.module.parameters())


def test_a_folder_with_both_layouts_is_read_as_transformers_unless_told(
    transformers_clip: Path, open_clip_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(transformers_clip, tmp_path / "both")
    shutil.copytree(open_clip_folder, tmp_path / "both", dirs_exist_ok=True)
    assert isinstance(encoder(tmp_path / "both").model, TransformersClip)
    assert isinstance(encoder(tmp_path / "both", layout="open_clip").model, OpenClip)


def test_tokenizer_and_processor_may_lie_elsewhere(transformers_clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(transformers_clip / name, tmp_path / name)
    here, there = encoder(tmp_path, processor=str(transformers_clip)), encoder(transformers_clip)
    torch.testing.assert_close(here.encode_text(TEXTS), there.encode_text(TEXTS))


def test_a_folder_that_is_no_clip_is_named_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(PolyalignError, match=r"is not a CLIP checkpoint: found a config.json of model_type 'bert'; expected"):
        encoder(tmp_path)


def test_a_hub_id_that_cannot_be_reached_says_what_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        PolyalignError, match=r"'nobody/no-such-clip' cannot be loaded \(as transformers: .*; as open_clip: .*folder, zoo:NAME"
    ):
        ClipEncoder(ClipConfig(model="nobody/no-such-clip"))


def test_picture_key_follows_the_pixels() -> None:
    one, same = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (4, 2), (255, 0, 0))
    assert picture_key(one) == picture_key(same)
    assert (
        len({picture_key(picture) for picture in (one, Image.new("RGB", (2, 4), "red"), Image.new("RGB", (4, 2), "blue"))}) == 3
    )
