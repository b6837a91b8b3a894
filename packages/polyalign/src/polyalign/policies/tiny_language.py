"""A tokenizer and a language model made from code, small enough to train on a CPU in milliseconds: for fixtures and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

WORDS_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<answer> {% endif %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %} <end>{% endif %} {% endfor %}{% if add_generation_prompt %}<answer> {% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE, more: Sequence[str] = ()) -> Any:
    """Return a tokenizer with one token per byte and two special ones, and ``more``; padding is the end token, as in many
    real models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=["<|start|>", *more]
    )
    tokenizer.chat_template = template
    return tokenizer


def word_tokenizer(words: Sequence[str], more: Sequence[str] = ()) -> Any:
    """Return a tokenizer with one token per word between spaces. The first three are ``<pad>``, which is also any unknown word,
    ``<end>`` and ``<answer>``; ``more`` special ones come last."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<pad>", "<end>", "<answer>", *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", additional_special_tokens=["<answer>", *more]
    )
    tokenizer.chat_template = WORDS_TEMPLATE
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
