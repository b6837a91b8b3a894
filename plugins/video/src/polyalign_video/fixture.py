"""A tiny random Qwen2.5-VL with clips that it can watch: what the cells test and this plugin's own tests train on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from polyalign.policies.config import LoraConfig
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.tiny_language import byte_tokenizer
from polyalign.records.samples import MediaSource
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record, TextPart
from polyalign.records.store import MemoryMedia
from polyalign_video.clip import Clip
from polyalign_video.config import VideoLanguageConfig
from polyalign_video.modality import VideoModality
from polyalign_video.motion import OPPOSITE
from polyalign_video.video_language import VideoLanguagePolicy, assembled

IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    f"{{% if part['type'] == 'video' %}}{START}{VIDEO}{END}{{% elif part['type'] == 'image' %}}{START}{IMAGE}{END}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIDE, PATCH = 16, 4


def tiny_qwen(seed: int = 0, width: int = 32, layers: int = 2, patch: int = PATCH, pixels: int = SIDE**2) -> tuple[Any, Any]:
    """Return (model, processor): clips of 16 x 16 pixels, 4 features per pair of frames; equal seeds, equal weights."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
        Qwen2VLVideoProcessor,
    )

    tokenizer = byte_tokenizer(TEMPLATE, more=[IMAGE, VIDEO, START, END])
    sizes = {"patch_size": patch, "size": {"shortest_edge": pixels, "longest_edge": pixels}}
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessorPil(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes))
    image, video, start, end = (tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, VIDEO, START, END))
    language = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [width // 32, width // 32, width // 16],
        },
    }  # fmt: skip
    vision = {
        "depth": layers, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 2, "patch_size": patch,
        "out_hidden_size": width, "window_size": 4 * patch, "fullatt_block_indexes": [layers - 1], "tokens_per_second": 2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=language, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration(config), processor


def policy(made: tuple[Any, Any] | None = None, seed: int = 0, **settings: Any) -> VideoLanguagePolicy:
    """Return a fresh tiny policy over ``made`` (model, processor); default: `tiny_qwen` with LoRA of rank 4."""
    model, processor = made or tiny_qwen()
    options = {"max_length": 160, "max_response": 48, "lora": LoraConfig(rank=4), "frames": 4, **settings}
    return assembled(model, processor, VideoLanguageConfig(base="tiny", **options), seed)


def drawing(move: str, frames: int = 4, side: int = SIDE, seed: int = 0) -> Clip:
    """Return a coloured square that makes a move on white: three quarters of the side, or from a quarter to all of it."""
    colour = np.random.default_rng(seed).integers(0, 160, 3)
    made = np.full((frames, side, side, 3), 255, np.uint8)
    half = side // 4
    for number, share in enumerate(np.linspace(-1, 1, frames)):
        reach = round(share * (side // 2 - half))
        across, up = {"right": (reach, 0), "left": (-reach, 0), "up": (0, reach), "down": (0, -reach)}.get(move, (0, 0))
        size = round(half * (1 + {"grows": share, "shrinks": -share}.get(move, 0) * 0.6))
        x, y = side // 2 + across, side // 2 - up
        made[number, max(0, y - size) : y + size, max(0, x - size) : x + size] = colour
    return Clip(made, 4.0)


def records() -> tuple[list[Record], MediaSource]:
    """Return four comparisons of two answers about a clip, then two grids of two clips x two answers."""
    media, codec = MemoryMedia(), VideoModality()

    def asked(move: str) -> tuple[Message, ...]:
        clip = MediaPart(media=media.add(codec.encode(drawing(move), "image/webp"), "video", "image/webp"))
        return (Message(role="user", parts=(clip, TextPart(text="What does it do?"))),)

    def said(move: str) -> tuple[TextPart, ...]:
        return (TextPart(text=move),)  # no word in common: what a teacher or a label says of one answer says nothing of the other

    found = [
        Record(
            id=f"pair-{move}",
            prompt=asked(move),
            candidates=(Candidate(parts=said(move)), Candidate(parts=said(OPPOSITE[move]))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for move in ("left", "right", "up", "grows")
    ]
    for first in ("left", "down"):
        second = OPPOSITE[first]
        shown, answers = [asked(first), asked(second)], [said(first), said(second)]
        found.append(grid(f"grid-{first}", shown, answers))
    return found, media


def fixture() -> PolicyFixture:
    """Return what the cells test needs."""
    made, media = records()
    return PolicyFixture(build=policy, records=made, media=media, decoding={"max_new_tokens": 6})
