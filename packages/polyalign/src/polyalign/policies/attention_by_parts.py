"""Attention over shared rows, part by part, so that no product is spent on pairs of tokens that are blind to each other.

A row ``[prompt | response 1 | ... | response k]`` under a dense mask costs the square of its length. Here the prompt attends to
itself by a causal kernel, and each response to its prompt and itself: ``P^2 / 2 + sum of A (P + A)`` pairs instead of
``(P + sum of A)^2``. Responses of one length go together. The mask stays what it was; it carries the parts along, and a layer
that makes nothing of them, or whose mask was copied on the way, computes the same from the mask alone.

It is an attention function of transformers, under the name `BY_PARTS`: a model that takes "sdpa" takes it too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import BoolTensor, Tensor

BY_PARTS = "polyalign_by_parts"


@dataclass(frozen=True)
class Part:
    """A prompt of a shared row and the responses behind it, each ``(first, last + 1)`` in the row."""

    row: int
    prompt: tuple[int, int]
    responses: tuple[tuple[int, int], ...]


def parts_of(owner: Tensor, prefix: Tensor) -> tuple[Part, ...]:
    """Return the parts of shared rows, from ``owner`` and ``prefix`` ``[R, L]`` of `shared_prefix.share_rows`."""
    parts = []
    for row in range(len(owner)):
        segments, sizes = torch.unique_consecutive(owner[row], return_counts=True)
        ends = sizes.cumsum(0)
        prompts: dict[int, tuple[int, int]] = {}
        behind: dict[int, list[tuple[int, int]]] = {}
        for segment, shared, size, end in torch.stack([segments, prefix[row, ends - 1], sizes, ends], 1).tolist():
            if segment < 0:  # padding
                continue
            places = (end - size, end)
            prompts.setdefault(shared, places if segment == shared else (end - size, end - size))  # a prompt may be empty
            if segment != shared:
                behind.setdefault(shared, []).append(places)
        parts += [Part(row, prompts[shared], tuple(behind.get(shared, ()))) for shared in prompts]
    return tuple(parts)


def with_parts(mask: BoolTensor, owner: Tensor, prefix: Tensor) -> BoolTensor:
    """Return the mask ``[R, 1, L, L]`` with the parts that it is made of."""
    mask.parts = parts_of(owner, prefix)  # type: ignore[attr-defined]
    return mask


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return (``[R, L, heads, width]``, None), as transformers' "sdpa" does, which also computes what has no parts."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    parts = getattr(attention_mask, "parts", None)
    unusual = any(options.get(name) is not None for name in ("softcap", "position_bias", "s_aux", "cache"))
    if parts is None or unusual or key.shape[2] != query.shape[2]:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return _by_parts(query, key, value, parts, dropout, scaling).transpose(1, 2).contiguous(), None


def _by_parts(query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], dropout: float, scale: float | None) -> Tensor:
    """Return ``[R, heads, L, width]``; 0 at padding."""
    length = query.shape[2]
    pieces: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
    for part in parts:
        start, stop = part.prompt
        q, k, v = (tensor[part.row : part.row + 1] for tensor in (query, key, value))  # [1, heads, L, width]
        prompt_k, prompt_v = k[:, :, start:stop], v[:, :, start:stop]
        if stop > start:
            made = F.scaled_dot_product_attention(
                q[:, :, start:stop], prompt_k, prompt_v, dropout_p=dropout, is_causal=True, scale=scale
            )
            pieces[part.row].append((start, made))
        by_length: dict[int, list[int]] = defaultdict(list)
        for first, end in part.responses:
            by_length[end - first].append(first)
        for size, firsts in by_length.items():
            own_q, own_k, own_v = (torch.cat([tensor[:, :, at : at + size] for at in firsts]) for tensor in (q, k, v))
            keys = torch.cat([prompt_k.expand(len(firsts), -1, -1, -1), own_k], 2)
            values = torch.cat([prompt_v.expand(len(firsts), -1, -1, -1), own_v], 2)
            seen = torch.ones(size, keys.shape[2], dtype=torch.bool, device=q.device).tril(stop - start)
            made = F.scaled_dot_product_attention(own_q, keys, values, attn_mask=seen, dropout_p=dropout, scale=scale)
            pieces[part.row] += [(first, one[None]) for first, one in zip(firsts, made, strict=True)]
    rows = []
    for row in range(len(query)):
        ordered = [tensor for _, tensor in sorted(pieces[row], key=lambda piece: piece[0])]
        filled = sum(tensor.shape[2] for tensor in ordered)
        padding = query.new_zeros(1, query.shape[1], length - filled, value.shape[-1])
        rows.append(torch.cat([*ordered, padding.to(value.dtype)], 2))
    return torch.cat(rows)


def take(config: Any) -> None:
    """Have models of this (text) configuration attend by parts, if they attend by "sdpa" now."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if config._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(BY_PARTS, attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(BY_PARTS, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        config._attn_implementation = BY_PARTS
