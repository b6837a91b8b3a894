"""Train `zoo:tiny-vlm`: a LLaVA of 4M parameters that describes 64x64 emoji and answers questions about them.

    python3 tools/dev.py zoo tiny-vlm [--minutes 60]     # continues from the checkpoint in --work
    python3 tools/dev.py zoo tiny-vlm export

Everything is learnt from random weights on `datasets/emoji-captions`, captions of uneven truth among them (its card says how
many are wrong), so the model invents attributes as models trained on web captions do: what preference tuning then mends.
Scoring is the library's own: all captions of a picture share its row.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from emoji_caption_edits import Picture, WrongValues, noisy, pictures_of
from emoji_styles import store_pictures
from emoji_table import load_table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from polyalign.policies.media_training import freeze
from polyalign.records.dataset import ExampleDataset
from polyalign.records.samples import Prompt, Sample
from polyalign.records.schema import MediaPart, TextPart, text_of
from polyalign.records.store import MediaStore
from polyalign.training.config import SourceConfig
from polyalign_image.config import VisionLanguageConfig
from polyalign_image.picture_kind import PictureEncoder
from polyalign_image.vision_language import VisionLanguagePolicy

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "packages/polyalign-zoo/src/polyalign_zoo/models/tiny-vlm"
DATA = "dataset:emoji-captions"
DATA_DIR = ROOT / "datasets/emoji-captions"
SPLITS = ("captions.train", "captions.test", "questions.train", "questions.test")
SIDE, PATCH, VOCABULARY = 64, 16, 2000
PICTURES, RATE, WARM_UP_STEPS, EMA_DECAY = 32, 1.5e-3, 200, 0.998
END, IMAGE = "<|end|>", "<image>"
TEMPLATE = (
    "<s>{% for message in messages %}<|{{ message['role'] }}|>{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def samples() -> list[Sample]:
    sources = [SourceConfig(path=DATA, split=split) for split in SPLITS]
    data = ExampleDataset(sources, "sft")
    return [sample for index in range(len(data)) for sample in data[index].samples]


def new_processor(texts: Sequence[str]) -> LlavaProcessor:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", END, IMAGE, "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=END, pad_token=END, additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = TEMPLATE
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    return LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip


def new_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=192, intermediate_size=576, num_hidden_layers=4, num_attention_heads=3, image_size=SIDE, patch_size=PATCH
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image_id, vision_feature_layer=-1, tie_word_embeddings=True
    )
    return LlavaForConditionalGeneration(config)


def policy_of(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> VisionLanguagePolicy:
    config = VisionLanguageConfig(base="zoo:tiny-vlm", max_length=256, max_response=64, tower="full")
    freeze(model, config, "image")
    return VisionLanguagePolicy(model, PictureEncoder(processor, model.config.image_token_id), config)


def picture_of(sample: Sample) -> str:
    return next(part.media.sha256 for part in sample.prompt[-1].parts if isinstance(part, MediaPart))


class Passes:
    """Every picture with its questions, its true caption, and one that is made wrong anew in each pass."""

    def __init__(self, data: Sequence[Sample], pictures: Sequence[Picture]) -> None:
        self.pictures = list(pictures)
        self._wrong = WrongValues(pictures)
        self._about: dict[str, list[Sample]] = defaultdict(list)
        for sample in data:
            self._about[picture_of(sample)].append(sample)

    def samples(self, index: int, epoch: int) -> Iterator[Sample]:
        picture = self.pictures[index]
        for sample in self._about[picture.media.sha256]:
            yield sample
            if "colours" in sample.conditions:  # a caption, no question
                _, text = noisy(picture, self._wrong, "pass", epoch)
                yield replace(sample, response=(TextPart(text=text),))


def train(work: Path, minutes: float) -> None:
    data = samples()
    if not (work / "processor").exists():
        new_processor([text_of(s.prompt[-1].parts) for s in data] + [text_of(s.response) for s in data]).save_pretrained(
            work / "processor"
        )
    processor = LlavaProcessor.from_pretrained(work / "processor")
    torch.manual_seed(0)
    policy = policy_of(new_model(processor), processor)
    average = copy.deepcopy(policy.model).requires_grad_(False)
    weights = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    step, elapsed = 0, 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        policy.model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed = state["step"], state["elapsed"]

    table = load_table(ROOT / ".cache/npm")
    passes = Passes(data, pictures_of(table, store_pictures(table, MediaStore(DATA_DIR))))

    def save(seconds: float) -> None:
        parts = {"model": policy.model, "average": average, "optimizer": optimizer}
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"step": step, "elapsed": seconds}, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    began = saved = time.time()
    epoch = step
    order = torch.empty(0, dtype=torch.long)
    losses: list[float] = []
    while (seconds := time.time() - began + elapsed) < 60 * minutes:
        if len(order) < PICTURES:
            epoch = step
            order = torch.randperm(len(passes.pictures), generator=torch.Generator().manual_seed(epoch))
        chosen, order = order[:PICTURES].tolist(), order[PICTURES:]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - seconds / (60 * minutes))
        batch = policy.collate([sample for index in chosen for sample in passes.samples(index, epoch)])
        log_probs = policy(batch).log_probs
        loss = -log_probs.sum() / batch.mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        with torch.no_grad():
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), weights, 1 - decay)
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step} done {seconds / 60 / minutes:.1%} loss {np.mean(losses[-50:]):.3f}", flush=True)
        if step % 500 == 0:
            show(average, processor, data)
        if time.time() - saved > 180:
            saved = time.time()
            save(saved - began + elapsed)
    save(60 * minutes)
    show(average, processor, data)


def show(model: LlavaForConditionalGeneration, processor: LlavaProcessor, data: Sequence[Sample]) -> None:
    """Print greedy answers about a few pictures."""
    policy = policy_of(copy.deepcopy(model), processor)
    asked = [data[index] for index in range(0, len(data), len(data) // 10)]
    prompts = [Prompt.of(sample.prompt, sample.media) for sample in asked]
    for sample, rollout in zip(asked, policy.generate(prompts, temperature=0.0, max_new_tokens=48)):
        print(f"  {text_of(sample.prompt[-1].parts)!r}: {rollout.output!r}; data: {text_of(sample.response)!r}", flush=True)


def export(work: Path, target: Path) -> None:
    """Write the averaged weights as an ordinary transformers folder in half precision."""
    processor = LlavaProcessor.from_pretrained(work / "processor")
    model = new_model(processor)
    state = torch.load(work / "checkpoint.pt")
    model.load_state_dict(state["average"])
    model.to(torch.float16).save_pretrained(target)
    processor.save_pretrained(target)
    print(f"exported step {state['step']}: {sum(p.numel() for p in model.parameters())} parameters", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("all", "train", "export"), nargs="?", default="all")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/tiny-vlm")
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("all", "train"):
        train(arguments.work, arguments.minutes)
    if arguments.stage in ("all", "export"):
        export(arguments.work, arguments.target)


if __name__ == "__main__":
    main()
