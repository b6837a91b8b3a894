"""Tiny random recognisers and audio language models with records that they can hear, for the cells test and our own."""

from __future__ import annotations

from typing import Any

import torch

from polyalign.policies.config import LoraConfig
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.media_training import freeze
from polyalign.policies.tiny_language import byte_tokenizer
from polyalign.records.samples import MediaSource
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record, TextPart
from polyalign.records.store import MemoryMedia
from polyalign_audio.audio_language import AudioLanguagePolicy, encoder_of
from polyalign_audio.clips import chirp
from polyalign_audio.config import AudioLanguageConfig, WhisperConfig
from polyalign_audio.modality import AudioModality
from polyalign_audio.whisper import TranscriptEncoder, WhisperPolicy

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|AUDIO|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
WORDS = {"rise": (200.0, 900.0), "fall": (900.0, 200.0), "low": (200.0, 210.0), "high": (900.0, 910.0)}
RATE, MELS, STATES = 8_000, 16, 50  # states per second of the encoder


def _extractor() -> Any:
    """Return a feature extractor of one second."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=MELS, chunk_length=1, hop_length=160)


def tiny_whisper(seed: int = 0) -> tuple[Any, Any]:
    """Return (model, processor): a window of one second, a byte tokenizer; equal seeds, equal weights."""
    from transformers import WhisperConfig as Settings
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    tokenizer = byte_tokenizer(None)
    start, end = tokenizer.convert_tokens_to_ids("<|start|>"), tokenizer.eos_token_id
    settings = Settings(
        vocab_size=len(tokenizer), num_mel_bins=MELS, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=64,
        max_source_positions=STATES, max_target_positions=128, decoder_start_token_id=start,
        bos_token_id=start, eos_token_id=end, pad_token_id=end,
        init_std=0.2,  # wide, so that clips differ in their states and the decoder in what it makes of them
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = WhisperForConditionalGeneration(settings)
    return model, WhisperProcessor(_extractor(), tokenizer)


def whisper_policy(made: tuple[Any, Any] | None = None, seed: int = 0, **settings: Any) -> WhisperPolicy:
    """Return a fresh tiny recogniser over ``made`` (model, processor); default: `tiny_whisper` with LoRA of rank 4."""
    model, processor = made or tiny_whisper()
    options = {"max_length": 64, "max_response": 48, "lora": LoraConfig(rank=4), **settings}
    config = WhisperConfig(base="tiny", **options)
    freeze(model, config, ("audio",), seed)
    return WhisperPolicy(model, TranscriptEncoder(processor, (model.config.decoder_start_token_id,)), config)


def tiny_qwen2_audio(seed: int = 0) -> tuple[Any, Any]:
    """Return (model, processor): 25 tokens for a second of sound, a byte tokenizer; equal seeds, equal weights."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioEncoderConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        Qwen2Config,
    )

    tokenizer = byte_tokenizer(TEMPLATE, more=["<|AUDIO|>"])
    tower = Qwen2AudioEncoderConfig(
        num_mel_bins=MELS,
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        max_source_positions=STATES,
    )
    language = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = Qwen2AudioConfig(
        audio_config=tower, text_config=language, audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2AudioForConditionalGeneration(config)
    return model, Qwen2AudioProcessor(_extractor(), tokenizer, chat_template=TEMPLATE)


def language_policy(made: tuple[Any, Any] | None = None, seed: int = 0, **settings: Any) -> AudioLanguagePolicy:
    """Return a fresh tiny policy over ``made`` (model, processor); default: `tiny_qwen2_audio` with LoRA of rank 4."""
    model, processor = made or tiny_qwen2_audio()
    options = {"max_length": 160, "max_response": 48, "lora": LoraConfig(rank=4), **settings}
    config = AudioLanguageConfig(base="tiny", **options)
    freeze(model, config, ("audio",), seed)
    return AudioLanguagePolicy(model, encoder_of(processor, model.config.audio_token_id), config)


def records(question: str = "What is it?") -> tuple[list[Record], MediaSource]:
    """Return four comparisons of two descriptions of a clip, then two grids of two clips x two descriptions."""
    media, codec = MemoryMedia(), AudioModality()

    def asked(word: str) -> tuple[Message, ...]:
        data = codec.encode(chirp(0.3, RATE, *WORDS[word]), "audio/flac")
        clip = MediaPart(media=media.add(data, "audio", "audio/flac"))
        return (Message(role="user", parts=(clip, TextPart(text=question))),)

    def said(word: str) -> tuple[TextPart, ...]:
        return (TextPart(text=f"{word} it is."),)  # other words from the second decision on

    words = tuple(WORDS)
    found = [
        Record(
            id=f"pair-{word}",
            prompt=asked(word),
            candidates=(Candidate(parts=said(word)), Candidate(parts=said(wrong))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for word, wrong in zip(words, (*words[1:], words[0]), strict=True)
    ]
    for first, second in (words[:2], words[2:]):
        shown, answers = [asked(first), asked(second)], [said(first), said(second)]
        found.append(grid(f"grid-{first}", shown, answers))
    return found, media


def whisper_fixture() -> PolicyFixture:
    """Return what the cells test needs of recognisers."""
    made, media = records()
    return PolicyFixture(build=whisper_policy, records=made, media=media, decoding={"max_new_tokens": 6})


def language_fixture() -> PolicyFixture:
    """Return what the cells test needs of audio language models."""
    made, media = records()
    return PolicyFixture(build=language_policy, records=made, media=media, decoding={"max_new_tokens": 6})
