"""A hash of weights: equal weights, equal name, on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def weights_fingerprint(tensors: Iterable[tuple[str, Tensor]], *texts: str) -> str:
    """Return 32 hex digits over the names, shapes, dtypes and bytes of ``tensors`` and over ``texts`` (configuration)."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode() + b"\0")
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        value = tensor.detach().to("cpu").contiguous()
        digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def vocabulary_text(tokenizer: Any) -> str:
    """Return what a tokenizer makes of texts, as text."""
    if getattr(tokenizer, "is_fast", False):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.pop("truncation", None), state.pop("padding", None)  # switches of the last call, not part of the vocabulary
        return json.dumps(state, sort_keys=True)
    return json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map], sort_keys=True, default=str)
