"""A tiny random Qwen2.5-Omni thinker with media that it can read: what the cells test and this plugin's own tests train."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from polyalign.policies.config import LoraConfig
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.tiny_language import byte_tokenizer
from polyalign.records.samples import MediaSource
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Part, Record, TextPart
from polyalign.records.store import MemoryMedia
from polyalign_any_to_any.fixture import COLOURS, PITCHES, picture
from polyalign_any_to_any.media.speech import RATE, wav_of
from polyalign_any_to_any.omni import OmniLanguagePolicy, assembled
from polyalign_any_to_any.omni_config import OmniLanguageConfig

TOKENS = {
    "image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>", "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif part['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIDE, PATCH, MELS, WIDTH = 16, 4, 16, 32


def tiny_thinker(seed: int = 0) -> tuple[Any, Any]:
    """Return (model, processor): 4 features for a picture and for two frames of a clip, 25 for a second of sound; equal seeds,
    equal weights."""
    from transformers import (
        Qwen2_5OmniProcessor,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = byte_tokenizer(TEMPLATE, more=list(TOKENS.values()))
    tokenizer._set_model_specific_special_tokens(special_tokens=TOKENS)
    size = {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessorPil(patch_size=PATCH, size=size), Qwen2VLVideoProcessor(patch_size=PATCH, size=size),
        WhisperFeatureExtractor(feature_size=MELS, chunk_length=1, hop_length=160), tokenizer, chat_template=TEMPLATE,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5OmniThinkerForConditionalGeneration(tiny_config(tokenizer)), processor


def tiny_config(tokenizer: Any) -> Any:
    from transformers import Qwen2_5OmniThinkerConfig

    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    return Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "patch_size": PATCH,
            "out_hidden_size": WIDTH, "window_size": 4 * PATCH, "fullatt_block_indexes": [1],
        },
        audio_config={
            "num_mel_bins": MELS, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 16,
            "max_source_positions": 50, "n_window": 10, "output_dim": WIDTH,
        },
        image_token_index=ids["image_token"], video_token_index=ids["video_token"], audio_token_index=ids["audio_token"],
        audio_start_token_id=ids["audio_bos_token"], audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"], vision_end_token_id=ids["vision_eos_token"],
    )  # fmt: skip


def policy(made: tuple[Any, Any] | None = None, seed: int = 0, **settings: Any) -> OmniLanguagePolicy:
    """Return a fresh tiny policy over ``made`` (model, processor); default: `tiny_thinker` with LoRA of rank 4."""
    model, processor = made or tiny_thinker()
    options = {
        "max_length": 160, "max_response": 48, "lora": LoraConfig(rank=4), "frames": 4, "min_pixels": SIDE**2,
        "max_pixels": SIDE**2, **settings,
    }  # fmt: skip
    return assembled(model, processor, OmniLanguageConfig(base="tiny", **options), seed)


def png(colour: str) -> bytes:
    file = io.BytesIO()
    picture(colour, SIDE).save(file, "PNG")
    return file.getvalue()


def webp(colour: str, frames: int = 4, seconds: float = 1.0) -> bytes:
    """Return a clip of a disc that moves to the right."""
    disc, file = picture(colour, SIDE // 2), io.BytesIO()
    shown = [Image.new("RGB", (SIDE, SIDE), "white") for _ in range(frames)]
    for number, frame in enumerate(shown):
        frame.paste(disc, (number * (SIDE // 2) // max(1, frames - 1), SIDE // 4))
    shown[0].save(file, "WEBP", save_all=True, append_images=shown[1:], duration=round(1000 * seconds / frames), lossless=True)
    return file.getvalue()


def wav(pitch: int, seconds: float = 0.3) -> bytes:
    return wav_of(0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE))


def part(media: MemoryMedia, modality: str, number: int) -> MediaPart:
    """Return picture, clip or sound number 0 to 3."""
    data, mime = {
        "image": lambda: (png(COLOURS[number]), "image/png"),
        "video": lambda: (webp(COLOURS[number]), "image/webp"),
        "audio": lambda: (wav(PITCHES[number]), "audio/wav"),
    }[modality]()
    return MediaPart(media=media.add(data, modality, mime))


def records() -> tuple[list[Record], MediaSource]:
    """Return four comparisons of two answers about a picture, a clip, a sound, and all of them; then two grids of two media x two
    answers."""
    media = MemoryMedia()

    def asked(number: int, *modalities: str) -> tuple[Message, ...]:
        shown: list[Part] = [part(media, modality, number) for modality in modalities]
        return (Message(role="user", parts=(*shown, TextPart(text="Which?"))),)

    def said(number: int) -> tuple[TextPart, ...]:
        return (TextPart(text=COLOURS[number]),)  # no word in common

    found = [
        Record(
            id=f"pair-{'-'.join(modalities)}",
            prompt=asked(number, *modalities),
            candidates=(Candidate(parts=said(number)), Candidate(parts=said((number + 1) % 4))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for number, modalities in enumerate((("image",), ("video",), ("audio",), ("audio", "image", "video")))
    ]
    for first, second, modalities in ((0, 1, ("image", "audio")), (2, 3, ("video",))):
        shown, answers = [asked(first, *modalities), asked(second, *modalities)], [said(first), said(second)]
        found.append(grid(f"grid-{first}", shown, answers))
    return found, media


def fixture() -> PolicyFixture:
    """Return what the cells test needs."""
    made, media = records()
    return PolicyFixture(build=policy, records=made, media=media, decoding={"max_new_tokens": 6})
