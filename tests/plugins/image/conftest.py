"""Tiny random CLIP checkpoints in both layouts, saved as their own libraries save them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyalign.records.schema import Message
from polyalign.rewards.base import Judged

CAPTIONS = ("a red rose", "a blue whale on the waves", "a green apple")


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Three pictures of noise, of unlike shapes."""
    rng = np.random.default_rng(7)
    return [Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in ((40, 40), (48, 32), (20, 60))]


@pytest.fixture(scope="session")
def items(pictures: list[Image.Image]) -> list[Judged]:
    return [judged(caption, picture) for caption, picture in zip(CAPTIONS, pictures, strict=True)]


def judged(caption: str, picture: object) -> Judged:
    return Judged((Message(role="user", parts=caption),), picture)


@pytest.fixture(scope="session")
def transformers_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `transformers.CLIPModel` scaled down, with its tokenizer (letters only, no merges) and picture processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast
    from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("transformers-clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {token: index for index, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16).save_pretrained(folder)

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    end = vocabulary["<|endoftext|>"]
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), max_position_embeddings=16, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end, **size
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24, logit_scale_init_value=3.0)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model scaled down, as a folder that open_clip's ``local-dir:`` reads."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open-clip")
    model = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    }
    torch.manual_seed(1)
    save_file(open_clip.CLIP(**model).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    return folder
