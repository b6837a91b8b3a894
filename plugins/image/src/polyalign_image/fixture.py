"""A tiny random LLaVA with records that it can read: what the cells test and this plugin's own tests train on a CPU."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image, ImageDraw

from polyalign.policies.config import LoraConfig
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.media_training import freeze
from polyalign.policies.tiny_language import byte_tokenizer
from polyalign.records.samples import MediaSource
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record, TextPart
from polyalign.records.store import MemoryMedia
from polyalign_image.alignment_levels import AlignmentLevelsPolicy, LevelEncoder
from polyalign_image.config import AlignmentLevelsConfig, VisionLanguageConfig
from polyalign_image.picture_kind import PictureEncoder
from polyalign_image.vision_language import VisionLanguagePolicy

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIDE, PATCH = 16, 8
COLOURS = ("red", "green", "blue", "orange")


def tiny_llava(seed: int = 0, **language: Any) -> tuple[Any, Any]:
    """Return (model, processor): pictures of 16 pixels square, 4 features each, a byte tokenizer; equal seeds, equal weights."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = byte_tokenizer(TEMPLATE, more=["<image>"])
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=PATCH
        ),
        text_config=LlamaConfig(
            **{
                "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **language,
            }
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config), processor


def policy(made: tuple[Any, Any] | None = None, seed: int = 0, **settings: Any) -> VisionLanguagePolicy:
    """Return a fresh tiny policy over ``made`` (model, processor); default: `tiny_llava` with LoRA of rank 4."""
    model, processor = made or tiny_llava()
    options = {"max_length": 160, "max_response": 48, "lora": LoraConfig(rank=4), **settings}
    config = VisionLanguageConfig(base="tiny", **options)
    freeze(model, config, ("image",), seed)
    return VisionLanguagePolicy(model, PictureEncoder(processor, model.config.image_token_id), config)


def levels_policy(made: tuple[Any, Any] | None = None, seed: int = 0, **settings: Any) -> AlignmentLevelsPolicy:
    """Return a fresh tiny policy with alignment levels, in the tuning stage with LoRA of rank 4 unless told otherwise."""
    model, processor = made or tiny_llava()
    options = {"max_length": 160, "max_response": 48, "lora": LoraConfig(rank=4), "gate_hidden": 8, **settings}
    config = AlignmentLevelsConfig(base="tiny", **options)
    freeze(model, config, ("image",), seed)
    return AlignmentLevelsPolicy(model, LevelEncoder(processor, model.config.image_token_id), config, seed)


def drawing(colour: str, side: int = 24) -> bytes:
    """Return a PNG of a disc on white."""
    picture = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(picture).ellipse((4, 4, side - 4, side - 4), fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def records() -> tuple[list[Record], MediaSource]:
    """Return four comparisons of two captions of a picture, then two grids of two pictures x two captions."""
    media = MemoryMedia()

    def asked(colour: str, question: str = "What is this?") -> tuple[Message, ...]:
        picture = MediaPart(media=media.add(drawing(colour), "image", "image/png"))
        return (Message(role="user", parts=(picture, TextPart(text=question))),)

    def said(colour: str) -> tuple[TextPart, ...]:
        return (TextPart(text=f"A {colour} disc."),)

    found = [
        Record(
            id=f"pair-{colour}",
            prompt=asked(colour),
            candidates=(Candidate(parts=said(colour)), Candidate(parts=said(wrong))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for colour, wrong in zip(COLOURS, (*COLOURS[1:], COLOURS[0]), strict=True)
    ]
    for first, second in (COLOURS[:2], COLOURS[2:]):
        shown, answers = [asked(first), asked(second)], [said(first), said(second)]
        found.append(grid(f"grid-{first}", shown, answers))
    return found, media


def fixture() -> PolicyFixture:
    """Return what the cells test needs."""
    made, media = records()
    return PolicyFixture(build=policy, records=made, media=media, decoding={"max_new_tokens": 6})


def levels_fixture() -> PolicyFixture:
    """Return what the cells test needs of alignment levels."""
    made, media = records()
    return PolicyFixture(build=levels_policy, records=made, media=media, decoding={"max_new_tokens": 6})
