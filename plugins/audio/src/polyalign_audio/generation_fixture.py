"""Tiny models that make sound, with clips they can read: for the cells test and this plugin's own."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch

from polyalign.policies.base import Policy
from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.tiny_language import byte_tokenizer
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record
from polyalign.records.store import MemoryMedia
from polyalign_audio.codec_tokens import CodecTokenPolicy
from polyalign_audio.generation_config import CodecTokensConfig
from polyalign_audio.modality import AudioModality, Clip

RATE = 1000
NOTES = {"low": 50.0, "middle": 120.0, "high": 300.0}  # Hz
_FEATURES = FeatureCache()  # text encoder and codec are the same in every copy of the fixture


def tone(hertz: float, seconds: float, rate: int = RATE) -> Clip:
    """Return a sine that fades out."""
    time = np.arange(round(seconds * rate)) / rate
    return Clip((0.8 * np.sin(2 * np.pi * hertz * time) * np.exp(-3 * time)).astype(np.float32), rate)


def tones(rate: int = RATE, seconds: float = 0.1) -> tuple[list[Record], MemoryMedia]:
    """Return four comparisons (the note that was asked for is preferred) and two grids (tagged "grid"), with their media."""
    media, codec = MemoryMedia(), AudioModality()

    def clip(note: str, length: float) -> tuple[MediaPart, ...]:
        pitch = NOTES[note] * rate / RATE  # notes of one pitch at the plain rate are unlike at any rate
        sound = codec.encode(tone(pitch, length, rate), "audio/wav")
        return (MediaPart(media=media.add(sound, "audio", "audio/wav")),)

    def asked(note: str) -> tuple[Message, ...]:
        return (Message(role="user", parts=f"a {note} note"),)  # type: ignore[arg-type]

    pairs = [("low", "high"), ("high", "low"), ("middle", "high"), ("high", "middle")]
    records = [
        Record(
            id=f"pair-{number}",
            prompt=asked(chosen),
            candidates=(Candidate(parts=clip(chosen, seconds)), Candidate(parts=clip(rejected, seconds))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for number, (chosen, rejected) in enumerate(pairs)
    ]
    for number, (first, second) in enumerate([("low", "high"), ("middle", "low")]):
        clips = [clip(first, seconds), clip(second, seconds)]
        records.append(grid(f"grid-{number}", [asked(first), asked(second)], clips))
    return records, media


@cache
def _weights() -> dict[str, torch.Tensor]:
    """Return random weights, and codebooks of what the random encoder makes of the notes, so that these differ in codes."""
    from transformers import MusicgenForConditionalGeneration

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = MusicgenForConditionalGeneration(_config()).eval()
        notes = np.concatenate([tone(hertz, 0.2).samples for hertz in NOTES.values()])
        left = model.audio_encoder.encoder(torch.from_numpy(notes)[None, None])[0].T  # [frames, 8]
        for layer in model.audio_encoder.quantizer.layers:
            book = layer.codebook
            book.embed.copy_(left[torch.randperm(len(left))[: len(book.embed)]])
            left = left - book.decode(book.quantize(left))
    return model.state_dict()


def _config() -> Any:
    from transformers import EncodecConfig, MusicgenConfig, MusicgenDecoderConfig, T5Config

    text = T5Config(vocab_size=258, d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1)
    codec = EncodecConfig(
        sampling_rate=RATE, target_bandwidths=[0.504], hidden_size=8, num_filters=2, upsampling_ratios=[4, 4], codebook_size=16,
        num_lstm_layers=1,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=16, hidden_size=24, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, num_codebooks=2,
        max_position_embeddings=64, pad_token_id=16, bos_token_id=16, initializer_factor=0.3,
    )  # fmt: skip
    return MusicgenConfig(text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict())


def codec_tokens(**settings: Any) -> Policy:
    """Return a fresh tiny MusicGen, with equal weights each time."""
    from transformers import MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration(_config())
    model.load_state_dict(_weights())
    made = CodecTokenPolicy(model, byte_tokenizer(None), CodecTokensConfig(base="tiny", **settings))
    made.collator.features = _FEATURES
    return made


def codec_fixture() -> PolicyFixture:
    """Return what the cells test needs of codec tokens."""
    records, media = tones()
    return PolicyFixture(
        codec_tokens,
        records,
        media,
        idle=("decoder.layer_norm",),  # its bias adds the same to every reward, and cancels where rewards are compared
        with_values=partial(codec_tokens, value_head=True),
        decoding={"seconds": 0.06},
    )
