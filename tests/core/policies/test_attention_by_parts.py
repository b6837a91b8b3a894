"""Attention part by part: the same numbers and gradients as under the dense mask, and taken by models that take "sdpa"."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign.policies import attention_by_parts
from polyalign.policies.adapters import trainable
from polyalign.policies.attention_by_parts import BY_PARTS, Part, attention, parts_of, with_parts
from polyalign.policies.completion_mask import Encoded, PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.shared_prefix import Line, block_mask, share_rows
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.tokens import TokenPolicy


class Layer:
    num_key_value_groups = 2
    is_causal = True
    training = False


def laid_out(groups: Sequence[tuple[int, Sequence[int]]], packed: bool) -> dict[str, torch.Tensor]:
    """Return shared rows of groups, each a prompt's length and those of its responses."""
    lines = [Line(prompt, size, (0,), number) for number, (prompt, sizes) in enumerate(groups) for size in sizes]
    return share_rows(lines, packed)


def test_parts_are_prompts_with_what_stands_behind_them() -> None:
    shared = laid_out([(3, (2, 1)), (1, (1,))], packed=False)
    assert parts_of(shared["owner"], shared["prefix"]) == (
        Part(0, (0, 3), ((3, 5), (5, 6))),
        Part(1, (0, 1), ((1, 2),)),
    )
    packed = laid_out([(3, (2, 1)), (1, (1,)), (2, (1, 1))], packed=True)
    assert parts_of(packed["owner"], packed["prefix"]) == (
        Part(0, (0, 3), ((3, 5), (5, 6))),
        Part(1, (0, 2), ((2, 3), (3, 4))),
        Part(1, (4, 5), ((5, 6),)),
    )


GROUPS = st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=4)), min_size=1, max_size=3)


@given(groups=GROUPS, packed=st.booleans())
@settings(max_examples=40, deadline=None)
def test_it_equals_attention_under_the_dense_mask(groups: list[tuple[int, list[int]]], packed: bool) -> None:
    shared = laid_out(groups, packed)
    rows, length = shared["owner"].shape
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(rows, 4, length, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(rows, 2, length, 8, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    real = (shared["owner"] >= 0)[:, :, None, None]
    weights = torch.randn(rows, length, 4, 8, generator=draw, dtype=torch.float64) * real
    found = {}
    for name, mask in {
        "dense": block_mask(shared),
        "parts": with_parts(block_mask(shared), shared["owner"], shared["prefix"]),
    }.items():
        output, _ = attention(Layer(), query, key, value, mask, scaling=0.3)
        found[name] = (output * real, *torch.autograd.grad((output * weights).sum(), (query, key, value)))
    for dense, parts in zip(found["dense"], found["parts"], strict=True):
        torch.testing.assert_close(parts, dense, rtol=1e-10, atol=1e-12)


def test_it_computes_no_pair_of_tokens_that_are_blind_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 6 and responses of 2, 3 and 2: 36 pairs (the causal kernel skips half), then 4 of 8 keys twice and 3 x 9."""
    pairs = []
    plain = F.scaled_dot_product_attention

    def counting(query: torch.Tensor, key: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        pairs.append((query.shape[0] * query.shape[2] * key.shape[2], bool(options.get("is_causal"))))
        return plain(query, key, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    shared = laid_out([(6, (2, 3, 2))], packed=False)
    query, key = torch.randn(1, 4, 13, 8), torch.randn(1, 2, 13, 8)
    attention(Layer(), query, key, key, with_parts(block_mask(shared), shared["owner"], shared["prefix"]))
    assert pairs == [(36, True), (2 * 2 * 8, False), (3 * 9, False)]


def test_policies_score_and_learn_as_in_plain_rows() -> None:
    """Also with gradient checkpointing, where layers run again in the backward pass."""
    found = {}
    for rows in ("plain", "shared", "packed", "checkpointed"):
        settings = TokensConfig(rows="shared" if rows == "checkpointed" else rows, max_length=100)  # type: ignore[arg-type]
        policy = TokenPolicy(tiny_llama(258).double(), PromptResponseEncoder(byte_tokenizer()), settings).train()
        assert (policy.model.config._attn_implementation == BY_PARTS) == (rows != "plain")
        if rows == "checkpointed":
            policy.enable_gradient_checkpointing()
        encoded = [
            Encoded((1, 2, 3, 4), (5, 6, 7)),
            Encoded((1, 2, 3, 4), (8, 9)),
            Encoded((7, 7), (1, 2)),
            Encoded((7, 7), (3,)),
        ]
        scores = policy(policy.collator.layout((), encoded, torch.ones(4), None))
        scores.log_probs.square().sum().backward()
        found[rows] = (scores.log_probs.detach(), *(weight.grad for weight in trainable(policy).values()))
    for rows in ("shared", "packed", "checkpointed"):
        for plain, other in zip(found["plain"], found[rows], strict=True):
            torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)  # the rotation is computed in float32


def test_what_it_does_not_know_it_leaves_to_the_mask() -> None:
    shared = laid_out([(3, (2, 1))], packed=False)
    mask = with_parts(block_mask(shared), shared["owner"], shared["prefix"])
    query = torch.randn(1, 4, 6, 8)
    with pytest.raises(ValueError, match="does not support `softcap`"):
        attention(Layer(), query, query, query, mask, softcap=30.0)
    config = tiny_llama(258).config
    config._attn_implementation = "eager"
    attention_by_parts.take(config)
    assert config._attn_implementation == "eager"
