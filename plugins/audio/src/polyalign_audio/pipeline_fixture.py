"""Tiny denoising text-to-audio pipelines of real architecture, with clips they can read: for the cells test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.fixture import PolicyFixture
from polyalign.policies.pipelines.families import family_of
from polyalign.policies.pipelines.frozen import FrozenPipeline
from polyalign_audio.generation_config import TextToAudioConfig
from polyalign_audio.generation_fixture import tones
from polyalign_audio.pipeline_families import FAMILIES
from polyalign_audio.text_to_audio import TextToAudioPolicy


def _seeded(make: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **settings).eval()


def _t5(width: int) -> tuple[Any, Any]:
    """Return (encoder, tokenizer of single letters), made without any file."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    words = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{letter}" for letter in letters)]
    tokenizer = T5TokenizerFast(vocab=[(word, -1.0) for word in words], extra_ids=0, model_max_length=16)
    config = T5Config(vocab_size=300, d_model=width, d_ff=37, d_kv=8, num_heads=4, num_layers=2)
    return _seeded(T5EncoderModel, config), tokenizer


def stable_audio() -> Any:
    """Return a StableAudioPipeline for clips of 16 samples at 100 Hz."""
    from diffusers import AutoencoderOobleck, CosineDPMSolverMultistepScheduler, StableAudioDiTModel, StableAudioPipeline
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    encoder, tokenizer = _t5(32)
    return StableAudioPipeline(
        transformer=_seeded(
            StableAudioDiTModel,
            sample_size=8, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=4, num_attention_heads=2,
            num_key_value_attention_heads=2, cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8,
            cross_attention_input_dim=4,
        ),
        vae=_seeded(
            AutoencoderOobleck,
            encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=3, audio_channels=2,
            channel_multiples=[2, 4], sampling_rate=100,
        ),
        text_encoder=encoder,
        tokenizer=tokenizer,
        projection_model=_seeded(
            StableAudioProjectionModel, text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32
        ),
        scheduler=CosineDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )  # fmt: skip


def audioldm2() -> Any:
    """Return an AudioLDM2Pipeline for clips of 64 samples at 400 Hz: 16 frames of 8 mel bands."""
    from diffusers import AudioLDM2Pipeline, AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL, DDIMScheduler
    from transformers import (
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        GPT2Config,
        GPT2LMHeadModel,
        RobertaTokenizer,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
    )

    encoder, tokenizer = _t5(32)
    language = _seeded(GPT2LMHeadModel, GPT2Config(n_ctx=99, n_embd=16, n_head=1, n_layer=1, n_positions=99, vocab_size=1000))
    language.config.max_new_tokens = 4
    return AudioLDM2Pipeline(
        unet=_seeded(
            AudioLDM2UNet2DConditionModel,
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=8, in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=((None, 16, 32), (None, 16, 32)), attention_head_dim=4,
        ),
        vae=_seeded(
            AutoencoderKL,
            block_out_channels=[4, 8], in_channels=1, out_channels=1, norm_num_groups=4, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        ),
        text_encoder=_seeded(ClapModel, ClapConfig(**clap_sizes())),
        tokenizer=RobertaTokenizer(vocab=roberta_words(), merges=[], model_max_length=32),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        language_model=language,
        projection_model=_seeded(AudioLDM2ProjectionModel, text_encoder_dim=16, text_encoder_1_dim=32, langauge_model_dim=16),
        vocoder=_seeded(
            SpeechT5HifiGan,
            SpeechT5HifiGanConfig(
                model_in_dim=8, sampling_rate=400, upsample_initial_channel=16, upsample_rates=[2, 2],
                upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], normalize_before=False,
            ),
        ),
        feature_extractor=ClapFeatureExtractor(hop_length=7900),
        scheduler=DDIMScheduler(
            beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
    )  # fmt: skip


def clap_sizes() -> dict[str, Any]:
    """Return the settings of a tiny `ClapConfig`."""
    text = {
        "bos_token_id": 0, "eos_token_id": 2, "hidden_size": 8, "intermediate_size": 37, "num_attention_heads": 1,
        "num_hidden_layers": 1, "pad_token_id": 1, "vocab_size": 1000, "projection_dim": 8,
    }  # fmt: skip
    audio = {
        "spec_size": 8, "window_size": 2, "num_mel_bins": 8, "intermediate_size": 37, "depths": [1, 1],
        "num_attention_heads": [1, 1], "num_hidden_layers": 1, "hidden_size": 192, "projection_dim": 8, "patch_size": 2,
        "patch_stride": 2, "patch_embed_input_channels": 4,
    }  # fmt: skip
    return {"text_config": text, "audio_config": audio, "projection_dim": 16}


def roberta_words() -> dict[str, int]:
    """Return a vocabulary of single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    return {word: number for number, word in enumerate(words)}


PIPELINES = {"stable_audio": (stable_audio, 100), "audioldm2": (audioldm2, 400)}  # and the rate of the clips
_FEATURES = {name: FeatureCache() for name in PIPELINES}  # frozen encoders are the same in every copy of a fixture


@cache
def _pipeline(name: str) -> tuple[FrozenPipeline, Any]:
    made = PIPELINES[name][0]()
    family = family_of(FAMILIES, type(made).__name__, name)
    return FrozenPipeline(made, family), getattr(made, family.denoiser)


def policy(name: str, seed: int = 0, **settings: Any) -> TextToAudioPolicy:
    """Return a fresh tiny policy ("stable_audio" or "audioldm2")."""
    frozen, network = _pipeline(name)
    made = TextToAudioPolicy(frozen.assemble(copy.deepcopy(network)), TextToAudioConfig(base=f"tiny {name}", **settings), seed)
    made.collator.features = _FEATURES[name]
    return made


def _fixture(name: str) -> PolicyFixture:
    records, media = tones(rate=PIPELINES[name][1], seconds=0.16)
    drawn = {kind: {"sampler": {"kind": kind, "steps": 3}} for kind in ("ddim", "ode")}
    return PolicyFixture(lambda: policy(name), records, media, 3e-4, decoding=drawn["ddim"], decoding_whole=drawn["ode"])


def fixtures() -> tuple[PolicyFixture, ...]:
    """Return one fixture per architecture; the cells test runs every objective on each."""
    return _fixture("stable_audio"), _fixture("audioldm2")
