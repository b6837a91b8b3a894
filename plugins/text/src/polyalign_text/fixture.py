"""A tiny random language model, its tokenizer built from code, and records: what the cells test trains on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from polyalign.policies.base import Policy
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.fixture import PolicyFixture
from polyalign.records.schema import Candidate, Comparison, Message, Record
from polyalign_text.policy import TextPolicy

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> Any:
    """Return a tokenizer with one token per byte and two special ones; padding is the end token, as in many real models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama(vocabulary: int, *, layers: int = 2, hidden: int = 32, seed: int = 0, **settings: Any) -> Any:
    """Return a random Llama small enough to train in milliseconds; equal arguments give equal weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **{"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 257, "pad_token_id": 257} | settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def build() -> Policy:
    """Return a fresh tiny policy with the same weights each time."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return TextPolicy(model, PromptResponseEncoder(tokenizer), TokensConfig(max_length=128, max_response=48))


def _user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", parts=text),)  # type: ignore[arg-type]


def records() -> list[Record]:
    """Return four pairs under one prompt each, then two grids of two prompts x two answers."""
    pairs = [
        ("Name a red fruit.", "Cherry.", "Lime."),
        ("Say hello in lower case.", "hello", "HELLO"),
        ("Two plus three?", "Five.", "It is about nine."),
        ("Name a sea animal.", "Octopus.", "Goat."),
    ]
    grids = [
        ("Name a bird.", "An owl.", "Name a tree.", "An oak."),
        ("Say yes.", "Yes.", "Say no.", "No."),
    ]
    found = [
        Record(
            id=f"pair-{number}",
            prompt=_user(prompt),
            candidates=(Candidate(parts=chosen), Candidate(parts=rejected)),  # type: ignore[arg-type]
            feedback=(Comparison(ranking=(0, 1)),),  # type: ignore[arg-type]
        )
        for number, (prompt, chosen, rejected) in enumerate(pairs)
    ]
    for number, (first, answer_first, second, answer_second) in enumerate(grids):
        cells = [(first, answer_first), (first, answer_second), (second, answer_first), (second, answer_second)]
        candidates = tuple(Candidate(parts=answer, prompt=_user(prompt)) for prompt, answer in cells)  # type: ignore[arg-type]
        better_worse = [(0, 1), (3, 2), (0, 2), (3, 1)]  # rows (one prompt), then columns (one answer)
        comparisons = tuple(Comparison(ranking=pair) for pair in better_worse)  # type: ignore[arg-type]
        found.append(Record(id=f"grid-{number}", candidates=candidates, feedback=comparisons, tags=("grid",)))
    return found


def fixture() -> PolicyFixture:
    """Return what the cells test needs."""
    return PolicyFixture(build=build, records=records())
