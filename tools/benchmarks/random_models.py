"""Models and preference data of a given shape, made from code: random weights, a byte tokenizer, texts of exact lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import peft
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from polyalign.policies.adapters import add_lora
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import LoraConfig
from polyalign.policies.tiny_language import byte_tokenizer
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Example
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record, TextPart
from polyalign.records.store import MemoryMedia
from polyalign.records.views import VIEWS
from polyalign_image.fixture import TEMPLATE, drawing
from polyalign_image.fixture import policy as vision_language_policy
from polyalign_text.config import TextConfig
from polyalign_text.policy import TextPolicy

PATCH, HEAD_SIZE, VOCABULARY, RANK = 14, 64, 2048, 16
FORM = 19  # tokens that the chat template puts around a question
LETTERS = "abcdefghijklmnopqrstuvwxyz "


@dataclass(frozen=True)
class Shape:
    """A model and its data: tokens of each prompt (its picture not counted) and of every answer to it, end of turn included.

    ``picture``: pixels of its side, 0 for text alone; in patches of 14. A step takes ``per_step`` prompts.
    """

    prompts: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    per_step: int = 1
    hidden: int = 384
    layers: int = 4
    picture: int = 0
    tower_hidden: int = 256
    tower_layers: int = 3

    @property
    def picture_tokens(self) -> int:
        return (self.picture // PATCH) ** 2

    @property
    def steps(self) -> int:
        """Return how many different steps the data make."""
        return len(self.prompts) // self.per_step

    def members(self, step: int) -> range:
        """Return the numbers of the prompts of a step; the data repeat."""
        first = step % self.steps * self.per_step
        return range(first, first + self.per_step)


@dataclass(frozen=True)
class Asked:
    """One prompt and the answers to it, as text; ``picture`` is a PNG or None."""

    question: str
    answers: tuple[str, ...]
    picture: bytes | None


def asked(shape: Shape) -> list[Asked]:
    draw = random.Random(0)

    def text(length: int) -> str:
        return "".join(draw.choices(LETTERS[:-1], k=1) + draw.choices(LETTERS, k=length - 1))

    return [
        Asked(
            question=text(prompt - FORM),
            answers=tuple(text(length - 1) for length in answers),
            picture=drawing(f"hsl({number * 360 // len(shape.prompts)}, 80%, 50%)", 480) if shape.picture else None,
        )
        for number, (prompt, answers) in enumerate(zip(shape.prompts, shape.answers, strict=True))
    ]


def prompt_of(item: Asked, media: MemoryMedia) -> tuple[Message, ...]:
    picture = (MediaPart(media=media.add(item.picture, "image", "image/png")),) if item.picture else ()
    return (Message(role="user", parts=(*picture, TextPart(text=item.question))),)


def pairs(shape: Shape) -> list[Example]:
    """Return our examples: the first answer is preferred to the second."""
    media = MemoryMedia()
    records = [
        Record(
            id=str(number),
            prompt=prompt_of(item, media),
            candidates=tuple(Candidate(parts=(TextPart(text=answer),)) for answer in item.answers),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for number, item in enumerate(asked(shape))
    ]
    return [example for record in records for example in VIEWS["pairs"](record, media)]


def rendered(item: Asked, tokenizer: Any) -> str:
    """Return the prompt as the text that TRL is given: what our encoder renders too."""
    content = ("<image>" if item.picture else "") + item.question
    messages = [{"role": "user", "content": content}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def tokenizer_of_bytes() -> Any:
    return byte_tokenizer(TEMPLATE, more=["<image>"])


def model_and_processor(shape: Shape) -> tuple[Any, Any]:
    """Return a LLaVA and its processor, or, for text alone, a Llama and its tokenizer. Equal shapes, equal weights."""
    tokenizer = tokenizer_of_bytes()
    language = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.hidden * 11 // 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // HEAD_SIZE,
        num_key_value_heads=max(1, shape.hidden // HEAD_SIZE // 2),
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    if not shape.picture:
        return LlamaForCausalLM(language), tokenizer
    size = {"height": shape.picture, "width": shape.picture}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    tower = CLIPVisionConfig(
        hidden_size=shape.tower_hidden,
        intermediate_size=4 * shape.tower_hidden,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.tower_hidden // HEAD_SIZE,
        image_size=shape.picture,
        patch_size=PATCH,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=tower, text_config=language, image_token_id=image_token)
    return LlavaForConditionalGeneration(config), processor


def our_policy(shape: Shape, rows: str, **settings: Any) -> TokenPolicy:
    """Return our policy over the shape's model, with LoRA on the decoder."""
    model, processor = model_and_processor(shape)
    longest = max(map(sum, zip(shape.prompts, map(max, shape.answers), strict=True))) + shape.picture_tokens
    options: dict[str, Any] = {
        "rows": rows,
        "lora": LoraConfig(rank=RANK),
        "max_length": longest,
        "max_response": longest - 1,
        **settings,
    }
    if shape.picture:
        return vision_language_policy((model, processor), **options)
    config = TextConfig(base="random", **options)
    if config.lora is not None:
        add_lora(model, config.lora, 0)
    return TextPolicy(model, PromptResponseEncoder(processor), config)


def peft_config(model: Any) -> Any:
    """Return the same LoRA for TRL: every linear layer of the decoder."""
    inside = {id(module) for module in model.get_decoder().modules()}
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and id(module) in inside]
    return peft.LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules=names)
