"""Pipelines of real architecture, a few thousand random weights large and made without any file: for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)


def unet() -> StableDiffusionPipeline:
    """Return a Stable Diffusion 1.x pipeline for 64 x 64 pixels (17 thousand weights in the UNet)."""
    return StableDiffusionPipeline(
        unet=_seeded(
            UNet2DConditionModel,
            block_out_channels=(4, 8),
            layers_per_block=1,
            sample_size=32,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            norm_num_groups=2,
            attention_head_dim=2,
        ),
        vae=_vae((4, 8), norm_num_groups=2),
        text_encoder=_seeded(CLIPTextModel, _clip_config(hidden_size=8, num_attention_heads=2, num_hidden_layers=2)),
        tokenizer=byte_tokenizer(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


def unet_xl() -> StableDiffusionXLPipeline:
    """Return a Stable Diffusion XL pipeline for 64 x 64 pixels."""
    return StableDiffusionXLPipeline(
        unet=_seeded(
            UNet2DConditionModel,
            block_out_channels=(2, 4),
            layers_per_block=2,
            sample_size=32,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=64,
            norm_num_groups=1,
        ),
        vae=_vae((8, 16), norm_num_groups=4),
        text_encoder=_seeded(CLIPTextModel, _clip_config()),
        tokenizer=byte_tokenizer(),
        text_encoder_2=_seeded(CLIPTextModelWithProjection, _clip_config()),
        tokenizer_2=byte_tokenizer(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
    )


def flow() -> StableDiffusion3Pipeline:
    """Return a Stable Diffusion 3 pipeline for 32 x 32 pixels."""
    return StableDiffusion3Pipeline(
        transformer=_seeded(
            SD3Transformer2DModel,
            sample_size=32,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=64,
        ),
        vae=_vae(
            (4,), norm_num_groups=2, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035
        ),
        text_encoder=_seeded(CLIPTextModelWithProjection, _clip_config()),
        tokenizer=byte_tokenizer(),
        text_encoder_2=_seeded(CLIPTextModelWithProjection, _clip_config()),
        tokenizer_2=byte_tokenizer(),
        text_encoder_3=_seeded(T5EncoderModel, T5Config(vocab_size=300, d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2)),
        tokenizer_3=_t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _seeded(make: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Build a model from fixed random weights, leaving the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **settings).eval()


def _vae(channels: tuple[int, ...], **settings: Any) -> AutoencoderKL:
    return _seeded(
        AutoencoderKL,
        block_out_channels=channels,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        latent_channels=4,
        **settings,
    )


def _clip_config(hidden_size: int = 32, num_attention_heads: int = 4, num_hidden_layers: int = 5) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=hidden_size,
        intermediate_size=37,
        num_attention_heads=num_attention_heads,
        num_hidden_layers=num_hidden_layers,
        vocab_size=1000,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        hidden_act="gelu",
    )


def _byte_symbols() -> list[str]:
    """Return the printable stand-ins that byte-level BPE uses for the 256 bytes, in byte order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) if byte in plain else chr(256 + sum(b not in plain for b in range(byte))) for byte in range(256)]


def byte_tokenizer(length: int = 77) -> CLIPTokenizer:
    """Return a CLIP tokenizer of single bytes, 515 words, made without any file."""
    symbols = _byte_symbols()
    words = ["<|startoftext|>", "filler", "<|endoftext|>", *symbols, *(f"{symbol}</w>" for symbol in symbols)]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=length)


def _t5_tokenizer() -> T5TokenizerFast:
    ascii_letters = [chr(code) for code in range(33, 127)]
    words = ["<pad>", "</s>", "<unk>", "▁", *ascii_letters, *(f"▁{letter}" for letter in ascii_letters)]
    return T5TokenizerFast(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=16)
