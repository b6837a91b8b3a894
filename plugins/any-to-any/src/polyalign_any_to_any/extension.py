"""New words for a language model: markers and codes of media, as tokens of its tokenizer and rows of its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polyalign.policies.adapters import add_lora
from polyalign.policies.config import LoraConfig
from polyalign.randomness import keyed_seed
from polyalign_any_to_any.media.base import MediaTokenizer
from polyalign_any_to_any.spans import Span


def begin(modality: str) -> str:
    return f"<|{modality}|>"


def end(modality: str) -> str:
    return f"<|/{modality}|>"


def words(media: MediaTokenizer) -> list[str]:
    """Return the tokens that a medium needs: its markers, then its codes."""
    return [begin(media.modality), end(media.modality), *(f"<|{media.modality}:{code}|>" for code in range(media.codes))]


def spans_of(tokenizer: Any, media: Sequence[MediaTokenizer]) -> list[Span]:
    """Return where the media lie in an extended vocabulary."""
    found = []
    for one in media:
        head, tail, *codes = tokenizer.convert_tokens_to_ids(words(one))
        found.append(Span(one, (head,), tuple(codes), (tail,)))
    return found


def extended(model: Any, tokenizer: Any, media: Sequence[MediaTokenizer], lora: LoraConfig | None, seed: int) -> None:
    """Add what the tokenizer lacks, with rows drawn around the mean of the model's own (tied or not); nothing is added twice.

    With LoRA the embeddings and the head train beside the adapters, since new rows have nothing to adapt.
    """
    known = tokenizer.get_vocab()
    new = [word for one in media for word in words(one) if word not in known]
    if new:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "new words"))
            model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    if lora is not None:
        whole = {model.get_input_embeddings(), model.get_output_embeddings()}
        add_lora(model, lora, seed, in_full=[name for name, module in model.named_modules() if module in whole])
