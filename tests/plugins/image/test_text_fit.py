"""clip_score and pick_score equal their formulas, computed by the libraries themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from polyalign.errors import MediaError
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign_image.config import ClipScoreConfig, PickScoreConfig
from polyalign_image.text_fit import ClipScore, PickScore


def library_logits(folder: Path, items: list[Judged]) -> tuple[torch.Tensor, float]:
    """Each item's ``logits_per_image`` by `CLIPModel.forward`, and the temperature that is in them."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    model = CLIPModel.from_pretrained(folder).eval()
    captions = [item.prompt[0].parts[0].text for item in items]
    tokens = CLIPTokenizerFast.from_pretrained(folder)(
        captions, padding=True, truncation=True, max_length=model.config.text_config.max_position_embeddings, return_tensors="pt"
    )
    pixels = CLIPImageProcessor.from_pretrained(folder)([item.output for item in items], return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, **pixels).logits_per_image.diagonal(), float(model.logit_scale.exp())


def test_pick_score_is_the_models_own_logit(transformers_clip: Path, items: list[Judged]) -> None:
    """The official script's ``exp(logit_scale) * image @ text`` is `CLIPModel`'s ``logits_per_image``."""
    expected, scale = library_logits(transformers_clip, items)
    assert scale == pytest.approx(20.0855, rel=1e-4)  # e^3, set in the fixture
    found = PickScore(PickScoreConfig(model=str(transformers_clip), processor=str(transformers_clip))).score(items)
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert len({round(value, 4) for value in found}) == 3


def test_pick_score_reads_tokenizer_and_processor_from_their_own_folder(
    transformers_clip: Path, items: list[Judged], tmp_path: Path
) -> None:
    """The published layout: weights in one repository, tokenizer and picture processor in another."""
    weights, processor = tmp_path / "weights", tmp_path / "processor"
    for folder in (weights, processor):
        folder.mkdir()
    for file in transformers_clip.iterdir():
        target = weights if file.name in ("config.json", "model.safetensors") else processor
        (target / file.name).write_bytes(file.read_bytes())
    found = PickScore(PickScoreConfig(model=str(weights), processor=str(processor))).score(items)
    assert found == pytest.approx(library_logits(transformers_clip, items)[0].tolist(), abs=1e-4)


def test_published_pick_score_is_the_default() -> None:
    config = PickScoreConfig()
    assert (config.model, config.processor) == ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_clip_score_is_the_weighted_cosine(transformers_clip: Path, items: list[Judged], weight: float) -> None:
    logits, scale = library_logits(transformers_clip, items)
    assert float(logits.min()) > 0
    found = ClipScore(ClipScoreConfig(model=str(transformers_clip), weight=weight)).score(items)
    assert found == pytest.approx([weight * logit / scale for logit in logits.tolist()], abs=1e-5)


def test_clip_score_is_cut_at_zero_and_pick_score_is_not(transformers_clip: Path, items: list[Judged], tmp_path: Path) -> None:
    """Turning the text projection round turns the sign of every cosine, and of nothing else."""
    before = PickScore(PickScoreConfig(model=str(transformers_clip), processor=None)).score(items)
    turned = tmp_path / "turned"
    shutil.copytree(transformers_clip, turned)
    weights = load_file(turned / "model.safetensors")
    weights["text_projection.weight"] *= -1
    save_file(weights, turned / "model.safetensors", metadata={"format": "pt"})
    assert ClipScore(ClipScoreConfig(model=str(turned))).score(items) == [0.0, 0.0, 0.0]
    after = PickScore(PickScoreConfig(model=str(turned), processor=None)).score(items)
    assert after == pytest.approx([-value for value in before], abs=1e-5)


def test_clip_score_works_with_open_clip_weights(open_clip_folder: Path, items: list[Judged]) -> None:
    reward = ClipScore(ClipScoreConfig(model=str(open_clip_folder)))
    assert reward.score(items) == pytest.approx(reward.score(items[::-1])[::-1], abs=1e-6)


def test_a_prompt_that_comes_back_is_embedded_once(transformers_clip: Path, items: list[Judged]) -> None:
    reward = ClipScore(ClipScoreConfig(model=str(transformers_clip)))
    seen: list[str] = []
    embed = reward.cosines.encoder.encode_text
    reward.cosines.encoder.encode_text = lambda texts: (seen.extend(texts), embed(texts))[1]  # type: ignore[method-assign]
    first = reward.score([items[0], items[0], items[1]])
    assert reward.score([items[0], items[0], items[1]]) == first
    assert seen == ["a red rose", "a blue whale on the waves"]


def test_transparent_pictures_and_other_outputs(transformers_clip: Path, items: list[Judged]) -> None:
    reward = ClipScore(ClipScoreConfig(model=str(transformers_clip)))
    prompt = (Message(role="user", parts="a red rose"),)
    grey = Image.new("L", (20, 20), 90)
    assert reward.score([Judged(prompt, grey)]) == pytest.approx(reward.score([Judged(prompt, grey.convert("RGB"))]))
    with pytest.raises(MediaError, match="item 1 is a str; expected a picture"):
        reward.score([items[0], Judged(prompt, "no picture")])


def test_nothing_to_score_is_no_number(transformers_clip: Path) -> None:
    assert ClipScore(ClipScoreConfig(model=str(transformers_clip))).score([]) == []
