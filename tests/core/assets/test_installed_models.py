"""The real assets do what they are for. Each test is skipped, with the command to run, where its asset is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Asset = Callable[[str], Path]
pytestmark = pytest.mark.slow


def test_smollm2_knows_the_capital_of_france(asset: Asset) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = asset("smollm2")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id


def test_smollm2_splits_digits_off_before_anything_else(asset: Asset) -> None:
    """Splitting first means that text before a digit is tokenised as if the digit were not there."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asset("smollm2"))
    for before in ("a  ", "x\n\n ", "price:   "):
        assert tokenizer(before + "12").input_ids == [
            *tokenizer(before).input_ids,
            *tokenizer("1").input_ids,
            *tokenizer("2").input_ids,
        ]


def test_minilm_puts_like_meanings_together(asset: Asset) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = asset("minilm")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    batch = tokenizer(["red heart", "crimson love symbol", "green bus"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state  # [3, T, 384]
    mask = batch["attention_mask"].unsqueeze(-1)
    heart, love, bus = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert heart @ love > heart @ bus + 0.1


def test_whisper_hears_silence_and_a_beep_apart(asset: Asset) -> None:
    """Weights loaded by the right names are the only way that a tone is transcribed as one."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = asset("whisper-tiny.en")
    processor, model = WhisperProcessor.from_pretrained(folder), WhisperForConditionalGeneration.from_pretrained(folder)
    assert model.num_parameters() == 37_760_256
    seconds = torch.arange(32_000) / 16_000
    clips = [torch.zeros(32_000).numpy(), (0.3 * torch.sin(2 * torch.pi * 440 * seconds)).numpy()]
    features = processor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    silence, tone = processor.batch_decode(model.generate(features), skip_special_tokens=True)
    assert "beep" in tone.lower() and "beep" not in silence.lower()


def test_efficientnet_weights_are_complete_and_finite(asset: Asset) -> None:
    from safetensors.torch import load_file

    weights = load_file(asset("efficientnet-lite0") / "model.safetensors")
    assert weights["_fc.weight"].shape == (1000, 1280)
    assert all(bool(torch.isfinite(value).all()) for value in weights.values() if value.is_floating_point())
    trained = [value for name, value in weights.items() if "running" not in name and "num_batches" not in name]
    assert sum(value.numel() for value in trained) == 4_652_008
