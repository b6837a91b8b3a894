"""Pipelines of real architecture, a few thousand random weights large and made without any file: for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

TEXT_LENGTH = 16


def wan() -> WanPipeline:
    """Return a Wan 2.1 pipeline: 8 x 8 pixels and up to 4 frames per latent."""
    return WanPipeline(
        transformer=_seeded(
            WanTransformer3DModel,
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=1,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ),
        vae=_seeded(
            AutoencoderKLWan,
            base_dim=3,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[0.5, 1.0, 2.0, 1.5],
        ),
        **_text(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer_2=None,
    )


def cogvideox() -> CogVideoXPipeline:
    """Return a CogVideoX pipeline: 8 x 8 pixels and up to 4 frames per latent; predicts v."""
    return CogVideoXPipeline(
        transformer=_seeded(
            CogVideoXTransformer3DModel,
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=32,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
            patch_size=2,
            temporal_compression_ratio=4,
            max_text_seq_length=TEXT_LENGTH,
            use_rotary_positional_embeddings=True,
        ),
        vae=_seeded(
            AutoencoderKLCogVideoX,
            in_channels=3,
            out_channels=3,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        ),
        **_text(),
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0),
    )


def ltx() -> LTXPipeline:
    """Return an LTX pipeline: 8 x 8 pixels and 4 frames per latent; its schedule shifts with the number of tokens."""
    blocks = {"block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = _seeded(
        AutoencoderKLLTXVideo,
        latent_channels=8,
        **blocks,
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
    )
    vae.latents_mean.copy_(torch.linspace(-0.2, 0.2, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    return LTXPipeline(
        transformer=_seeded(
            LTXVideoTransformer3DModel,
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=1,
            caption_channels=32,
        ),
        vae=vae,
        **_text(),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=16, max_image_seq_len=64
        ),
    )


def _seeded(make: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Build a model from fixed random weights, leaving the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **settings).eval()


def _text() -> dict[str, Any]:
    letters = [chr(code) for code in range(33, 127)]
    words = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{letter}" for letter in letters)]
    tokenizer = T5TokenizerFast(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=TEXT_LENGTH)
    config = T5Config(vocab_size=300, d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=1)
    return {"tokenizer": tokenizer, "text_encoder": _seeded(T5EncoderModel, config)}
