"""Train `zoo:tiny-listener`: a Qwen2-Audio that says what tune it hears, and is right about most of it.

    python3 tools/dev.py zoo tiny-listener       # minutes on one core

It is polyalign's own supervised fine-tuning, on tunes made by a program (`tiny_musicgen_tunes`; none is in `heard-tunes`).
The instrument is wrong in three of ten descriptions that it learns from, so that it is a habit of the model's to be wrong
there, which preferences can mend. All else is right. Whether a tune rises or falls is not said: 600 steps taught nothing of it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from heard_tunes import described, record_of
from tiny_musicgen_tunes import all_asks, tune
from transformers import (
    AutoModelForMultimodalLM,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    WhisperFeatureExtractor,
)

from polyalign.config import read_recipe
from polyalign.policies.tiny_language import word_tokenizer
from polyalign.records.jsonl import write_jsonl
from polyalign.records.store import MediaStore
from polyalign.training.run import train

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "packages/polyalign-zoo/src/polyalign_zoo/models/tiny-listener"
TUNES, WRONG, SEED = 200, 0.3, 100  # of each of the 16 kinds; share of instruments that are wrong
MELS, SECONDS, HOP, WINDOW = 96, 2, 320, 1024  # a window of 64 ms tells notes apart that lie 25 Hz from each other
STATES = SECONDS * 16_000 // HOP // 2  # of the encoder
WORDS = "What is played ? a slow fast tune on low high flute reed".split()
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<answer> {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|AUDIO|>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %} <end>{% endif %} {% endfor %}{% if add_generation_prompt %}<answer> {% endif %}"
)


def untaught(folder: Path) -> None:
    """Write a model of random weights, and its processor, as a folder that transformers loads."""
    tokenizer = word_tokenizer(WORDS, more=["<|AUDIO|>"])
    tower = Qwen2AudioEncoderConfig(
        num_mel_bins=MELS, d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128,
        max_source_positions=STATES,
    )  # fmt: skip
    language = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    sound = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(audio_config=tower, text_config=language, audio_token_index=sound)
    )
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS, hop_length=HOP, n_fft=WINDOW)
    Qwen2AudioProcessor(extractor, tokenizer, chat_template=TEMPLATE).save_pretrained(folder)


def write_data(folder: Path) -> None:
    """Write one record per tune, with one description."""
    draw, store = np.random.default_rng(SEED), MediaStore(folder)
    records = []
    for number in range(TUNES):
        for ask in all_asks():
            told = described(ask, rightly=draw.random() >= WRONG)
            records.append(record_of(f"{number}-{len(records)}", ask, tune(ask, draw), store, (told,)))
    write_jsonl(folder / "train.jsonl", records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        untaught(folder / "untaught")
        write_data(folder / "data")
        recipe = {
            "name": "tiny-listener",
            "policy": {
                "name": "audio-language",
                "base": str(folder / "untaught"),
                "tower": "full",
                "max_length": 96,
                "max_response": 16,
            },
            "data": {"train": [{"path": str(folder / "data")}], "view": "sft"},
            "objective": {"name": "sft"},
            "training": {
                "steps": arguments.steps,
                "batch_size": 32,
                "log_every": 50,
                "optimizer": {"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50},
            },
            "report": {"prompts": 0},
        }
        run = train(read_recipe(json.dumps(recipe)), folder / "run")
        model = AutoModelForMultimodalLM.from_pretrained(run.folder / "model").half()
        model.save_pretrained(arguments.target)
        Qwen2AudioProcessor.from_pretrained(folder / "untaught").save_pretrained(arguments.target)
    print(f"exported {sum(weight.numel() for weight in model.parameters())} weights to {arguments.target}")


if __name__ == "__main__":
    main()
