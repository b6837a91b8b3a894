"""Tiny random Chameleon, Emu3 and Janus, with pictures of four codes: what the cells test trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from polyalign.policies.base import Policy
from polyalign.policies.config import LoraConfig
from polyalign.policies.fixture import PolicyFixture
from polyalign.policies.tiny_language import byte_tokenizer
from polyalign_any_to_any.config import PictureTokensConfig
from polyalign_any_to_any.fixture import records
from polyalign_any_to_any.native import assembled

CODES, SIDE, HIDDEN = 8, 8, 32
LANGUAGE = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}  # fmt: skip


def special(tokenizer: Any) -> dict[str, Any]:
    return {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def tiny_chameleon() -> tuple[Any, Any]:
    """Return (model, tokenizer). Codes are named by letters, as the real vocabulary does: IMGIMGDZ is code 3."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    named = [f"IMGIMG{chr(ord('A') + code)}Z" for code in range(CODES)]
    tokenizer = byte_tokenizer(more=["<image>", "<racm3:break>", "<eoss>", *named])
    config = ChameleonConfig(
        vocab_size=len(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
        vq_config={
            "embed_dim": 8, "num_embeddings": CODES, "latent_channels": 8, "resolution": SIDE, "base_channels": 32,
            "channel_multiplier": [1, 1, 1], "num_res_blocks": 1,
        },
        **LANGUAGE, **special(tokenizer),
    )  # fmt: skip
    return seeded(lambda: ChameleonForConditionalGeneration(config)), tokenizer


def tiny_emu3() -> tuple[Any, Any]:
    """Return (model, tokenizer)."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration

    named = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    marks = ["<image>", "<|image start|>", "<|image token|>", "<|image end|>", "<|extra_200|>", "<|extra_201|>"]
    tokenizer = byte_tokenizer(more=[*marks, *named])
    config = Emu3Config(
        text_config={"vocab_size": len(tokenizer), **LANGUAGE, **special(tokenizer), "bos_token_id": tokenizer.eos_token_id},
        vq_config={
            "codebook_size": CODES, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1, "attn_resolutions": [], "temporal_downsample_factor": 1, "hidden_size": 32,
        },
        vocabulary_map=tokenizer.get_vocab(),
    )  # fmt: skip
    return seeded(lambda: Emu3ForConditionalGeneration(config)), tokenizer


def tiny_janus() -> tuple[Any, Any]:
    """Return (model, tokenizer)."""
    from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig

    tokenizer = byte_tokenizer(more=["<image_placeholder>", "<begin_of_image>", "<end_of_image>"])
    config = JanusConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **LANGUAGE, **special(tokenizer)).to_dict(),
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 4,
            "projection_dim": HIDDEN, "num_image_tokens": 4, "depth": 2,
        },
        vq_config={
            "embed_dim": 4, "num_embeddings": CODES, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1, "projection_dim": HIDDEN, "image_token_embed_dim": HIDDEN, "num_hidden_layers": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
    )  # fmt: skip
    return seeded(lambda: JanusForConditionalGeneration(config)), tokenizer


def policy(make: Callable[[], tuple[Any, Any]], **settings: Any) -> Policy:
    """Return a fresh tiny policy over what ``make`` returns, with LoRA of rank 4 unless told otherwise."""
    model, tokenizer = make()
    options = {"max_length": 160, "max_response": 48, "side": SIDE, "lora": LoraConfig(rank=4), **settings}
    config = PictureTokensConfig(base="tiny", **options)
    return assembled(model, tokenizer, config)


def fixture() -> tuple[PolicyFixture, ...]:
    """Return what the cells test needs: Chameleon, Emu3, Janus."""
    made, media = records(("image",))
    return tuple(
        PolicyFixture(build=partial(policy, make), records=made, media=media, decoding={"max_new_tokens": 20})
        for make in (tiny_chameleon, tiny_emu3, tiny_janus)
    )
