"""All responses to a prompt in one row: the same scores and gradients as a row each, with less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from polyalign.errors import ConfigError
from polyalign.policies.adapters import add_lora, trainable
from polyalign.policies.base import Batch
from polyalign.policies.completion_mask import Encoded, PromptResponseEncoder
from polyalign.policies.config import LoraConfig, TokensConfig
from polyalign.policies.shared_prefix import PADDING, Costs, Line, block_mask, flex_mask, group_by_prefix, share_rows
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Sample
from polyalign.records.schema import Message, TextPart

WANT = frozenset({"entropy", "mean_logit", "log_sum_squares", "hidden"})
SMALL: dict[str, Any] = {
    "vocab_size": 258, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None, "initializer_range": 0.5,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def sample(prompt: str, response: str) -> Sample:
    return Sample(f"{prompt}/{response}", (Message(role="user", parts=prompt),), (TextPart(text=response),), prompt)  # type: ignore[arg-type]


SAMPLES = [
    sample("Name a red fruit.", "Cherry."),
    sample("Why?", "Because."),
    sample("Name a red fruit.", "A strawberry, I think."),
    sample("Name a red fruit.", ""),
]


def policy_of(model: Any, **settings: Any) -> TokenPolicy:
    config = TokensConfig(**{"max_length": 200, "max_response": 80, **settings})
    return TokenPolicy(model, PromptResponseEncoder(byte_tokenizer()), config)


def models() -> dict[str, Any]:
    t = transformers
    sliding = {"sliding_window": 6, "max_window_layers": 0}
    return {
        "llama": t.LlamaConfig(**SMALL),
        "gpt2 (learned positions)": t.GPT2Config(
            vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.5
        ),
        "gemma2 (soft caps, alternating windows)": t.Gemma2Config(**SMALL, head_dim=8, sliding_window=6),
        "gemma3": t.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]),
        "mistral (window in every layer)": t.MistralConfig(**SMALL, head_dim=8, sliding_window=6),
        "qwen2 (window in the last layer)": t.Qwen2Config(
            **SMALL, use_sliding_window=True, **sliding, layer_types=["full_attention", "sliding_attention"]
        ),
        "qwen3": t.Qwen3Config(**SMALL, head_dim=8),
        "cohere": t.CohereConfig(**SMALL),
        "phi3": t.Phi3Config(**SMALL),
        "olmo2": t.Olmo2Config(**SMALL),
        "mixtral": t.MixtralConfig(**SMALL, num_local_experts=4),
    }


def rows_and_gradients(policy: TokenPolicy, batch: Batch, shares: bool) -> tuple[Any, list[torch.Tensor]]:
    policy.shares = shares
    policy.zero_grad()
    scores = policy(batch, WANT)
    weights = torch.linspace(-1, 1, scores.log_probs.numel()).reshape(scores.log_probs.shape)
    (scores.log_probs * weights).sum().backward()
    return scores, [parameter.grad.clone() for parameter in trainable(policy).values() if parameter.grad is not None]


@pytest.mark.parametrize("rows", ["shared", "packed"])
@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, kind) for name in models() for kind in ("sdpa", "eager") if (name.split()[0], kind) != ("gemma2", "sdpa")],
)
def test_shared_and_packed_rows_give_the_scores_and_gradients_of_plain_ones(name: str, attention: str, rows: str) -> None:
    """Windows are shorter than the prompt here, so a window counted along the shared row would show."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(models()[name], attn_implementation=attention)
    policy = policy_of(model, rows=rows)
    assert policy.splits and policy.shares
    policy.eval()
    batch = policy.collate(SAMPLES)
    plain, plain_gradients = rows_and_gradients(policy, batch, shares=False)
    shared, shared_gradients = rows_and_gradients(policy, batch, shares=True)
    torch.testing.assert_close(shared.log_probs, plain.log_probs, rtol=1e-5, atol=2e-5)
    for extra in WANT:
        torch.testing.assert_close(shared.extras[extra], plain.extras[extra], rtol=1e-4, atol=1e-4)
    for one, other in zip(shared_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_the_prompt_is_computed_once_for_all_of_its_responses() -> None:
    policy = policy_of(tiny_llama(258))
    batch = policy.collate(SAMPLES)
    seen: list[tuple[int, ...]] = []
    policy.model.get_decoder().layers[0].register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[:2])))
    policy(batch)
    lengths = [len(policy.collator.encode(item)) for item in SAMPLES]
    prompt = len(policy.collator.encode(SAMPLES[0]).prompt)
    assert seen == [(2, lengths[0] + lengths[2] + lengths[3] - 2 * prompt)]
    assert policy.collator.row_costs(SAMPLES) == [seen[0][1], lengths[1]]


def test_nothing_is_shared_where_prompts_differ_and_plain_means_plain() -> None:
    assert "shared" not in policy_of(tiny_llama(258)).collate(SAMPLES[:2]).tensors
    plain = policy_of(tiny_llama(258), rows="plain")
    assert "shared" not in plain.collate(SAMPLES).tensors and not plain.shares
    assert plain.collator.row_costs(SAMPLES) == [len(plain.collator.encode(item)) for item in SAMPLES]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            transformers.Qwen3NextConfig(
                **SMALL, head_dim=8, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
                linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
                shared_expert_intermediate_size=8, layer_types=["linear_attention", "full_attention"],
            ),
            "linear_attention",
        ),
        (transformers.MambaConfig(vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0), ""),
        (transformers.BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=4), ""),
    ],
    ids=["qwen3-next", "mamba", "bloom"],
)  # fmt: skip
def test_models_that_cannot_share_fall_back_to_plain_rows_and_say_so_once(
    config: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with caplog.at_level("WARNING"):
        policy = policy_of(model)
    assert not policy.shares
    assert caplog.text.count("one row per response") == int(policy.splits) and reason in caplog.text
    together = policy(policy.collate(SAMPLES)).log_probs
    alone = policy(policy.collate(SAMPLES[2:3])).log_probs[0, 0]
    torch.testing.assert_close(together[2, 0, : len(alone)], alone, rtol=1e-4, atol=1e-4)
    if policy.splits:
        with pytest.raises(ConfigError, match="use auto or plain"):
            policy_of(model, rows="shared")


def test_gradient_checkpointing_and_adapters_work_in_shared_rows() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = tiny_llama(258, initializer_range=0.3)
        add_lora(model, LoraConfig(rank=4), seed=1)
        policy = policy_of(model)
        if checkpointed:
            policy.enable_gradient_checkpointing()
        policy.train()
        policy(policy.collate(SAMPLES)).reduced().sum().backward()
        gradients.append([parameter.grad for parameter in trainable(policy).values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


lines = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5)).map(lambda x: Line(2 + x[0], x[1], tuple(range(x[1])), x[0])),
    min_size=1,
    max_size=7,
)


@given(lines, st.booleans())
def test_every_token_sees_exactly_what_it_sees_in_a_row_of_its_own(rows: list[Line], packed: bool) -> None:
    """Read off the mask which (sample, column) each token sees and compare with the plain causal row."""
    shared = share_rows(rows, packed)
    seen = block_mask(shared)[:, 0]
    for number, line in enumerate(rows):
        row = int(shared["row"][number])
        cells = list(zip(shared["sample"][row].tolist(), shared["column"][row].tolist(), shared["owner"][row].tolist()))
        for turn, offset in enumerate(line.scored):
            place = int(shared["predictors"][number, turn])
            visible = [cells[key] for key in seen[row, place].nonzero().flatten().tolist()]
            assert sorted(column for _, column, _ in visible) == list(range(line.prompt + offset))
            assert {rows[sample].prefix for sample, _, _ in visible} == {line.prefix}
            assert {sample for sample, column, _ in visible if column >= line.prompt} <= {number}
        assert shared["column"][row, shared["last"][number]] == line.prompt + line.response - 1
    assert (shared["owner"] != PADDING).sum() == sum(prompt for prompt, _ in {(line.prompt, line.prefix) for line in rows}) + sum(
        line.response for line in rows
    )


def test_packing_fills_rows_up_to_the_longest_group() -> None:
    rows = [Line(6, 4, (0, 1, 2, 3), "a"), Line(2, 3, (0, 1, 2), "b"), Line(2, 3, (0, 1, 2), "c"), Line(3, 1, (0,), "d")]
    assert share_rows(rows, packed=True)["sample"].shape == (3, 10)
    assert share_rows(rows, packed=False)["sample"].shape == (4, 10)


@pytest.mark.parametrize(("prompt", "response", "rows"), [(100, 10, [4]), (60, 40, [1, 1, 1, 1]), (10, 90, [1, 1, 1, 1])])
def test_responses_share_a_row_as_far_as_that_costs_less(prompt: int, response: int, rows: list[int]) -> None:
    """Four responses; a row of L tokens costs L (100 + L), or L (100 + L / 2) where each has one. In 1, 2 or 4 rows:

    - prompt 100, response 10: 33,600, 52,800 or 68,200;
    - prompt 60, response 40: 70,400, 67,200 or 60,000 (in 3 rows: 73,600);
    - prompt 10, response 90: 173,900, 110,200 or 60,000.
    """
    lines = [Line(prompt, response, tuple(range(response)), "p")] * 4
    assert [len(group) for group in group_by_prefix(lines, costs=Costs(100))] == rows
    assert group_by_prefix(lines) == [[0, 1, 2, 3]]


def test_rows_that_would_be_padded_have_no_cheaper_attention() -> None:
    """Prompt 60, responses of 40 and 41: rows of their own want a dense mask too, so that two rows cost least."""
    lines = [Line(60, length, tuple(range(length)), "p") for length in (40, 40, 41, 41)]
    assert sorted(len(group) for group in group_by_prefix(lines, costs=Costs(100))) == [2, 2]


def test_where_attention_goes_by_parts_only_much_longer_responses_want_rows_of_their_own() -> None:
    """Four responses behind a prompt of 60, a token as dear as 100 cells: side by side they cost each other nothing, so that one
    row is cheapest until a causal kernel saves more, half the square of each, than the prompt costs three times again."""
    for length, dense, by_parts in ((20, 1, 1), (60, 4, 1), (90, 4, 1), (120, 4, 4)):
        lines = [Line(60, length, tuple(range(length)), "p")] * 4
        assert len(group_by_prefix(lines, Costs(100))) == dense, length
        assert len(group_by_prefix(lines, Costs(100, by_parts=True))) == by_parts, length


def test_parts_of_a_group_are_nearly_equally_long() -> None:
    """Responses of 30, 60, 40 and 50 tokens in two rows: 30 + 60 and 40 + 50."""
    lines = [Line(60, response, tuple(range(response)), "p") for response in (30, 60, 40, 50)]
    assert group_by_prefix(lines, costs=Costs(60)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("length", "shared_rows"), [(5, 1), (30, 1), (120, 4)])
def test_auto_gives_long_responses_rows_of_their_own_and_the_same_scores(length: int, shared_rows: int) -> None:
    """Explicitly shared rows stay whole. The micro-batch budget counts the rows that will run."""
    answers = [sample("Name a red fruit.", letter * length) for letter in "abcd"]
    auto, shared, plain = (
        policy_of(tiny_llama(258, initializer_range=0.3), rows=rows, max_response=200, max_length=400)
        for rows in ("auto", "shared", "plain")
    )
    assert len(auto.rows(auto.collate(answers)).tensors["input_ids"]) == len(auto.collator.row_costs(answers)) == shared_rows
    assert len(shared.rows(shared.collate(answers)).tensors["input_ids"]) == 1
    expected = plain(plain.collate(answers)).log_probs
    torch.testing.assert_close(auto(auto.collate(answers)).log_probs, expected, rtol=1e-4, atol=1e-4)


def test_a_window_counts_positions_of_the_samples_own_row() -> None:
    """Response 2 stands far from the prompt in the row, but right behind it in its own."""
    shared = share_rows([Line(3, 4, (0, 1, 2, 3), "p"), Line(3, 2, (0, 1), "p")])
    seen = block_mask(shared, window=3)[0, 0]
    first = int(shared["predictors"][1, 1])  # the first token of response 2: position 3 of its own row
    assert shared["column"][0][seen[first]].tolist() == [1, 2, 3]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_head_chunks_change_neither_scores_nor_gradients(size: int) -> None:
    whole, chunked = (policy_of(tiny_llama(258, initializer_range=0.3), head_chunk=chunk) for chunk in (None, size))
    expected, expected_gradients = rows_and_gradients(whole, whole.collate(SAMPLES), True)
    found, gradients = rows_and_gradients(chunked, chunked.collate(SAMPLES), True)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-6, atol=1e-6)
    for extra in WANT:
        torch.testing.assert_close(found.extras[extra], expected.extras[extra], rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_no_more_than_one_chunk_of_logits_is_kept_for_the_backward_pass() -> None:
    """Count the elements of tensors saved for the backward pass that have the vocabulary as a dimension."""
    kept = {}
    for size in (None, 4):
        policy = policy_of(tiny_llama(258), head_chunk=size)
        batch = policy.collate(SAMPLES)
        total = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            parameter = tensor.shape[-1:] == (258,) and tensor.shape[0] != 32
            total += tensor.numel() if parameter else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = policy(batch)
        kept[size] = total
        scores.log_probs.sum().backward()
    assert kept[None] > 0 and kept[4] == 0


def test_a_batch_of_encoded_rows_may_have_prompts_without_responses() -> None:
    policy = policy_of(tiny_llama(258))
    batch = policy.collator.layout((), [Encoded((1, 2, 3), ()), Encoded((1, 2, 3), ())], torch.ones(2), None)
    assert policy(batch).log_probs.shape == (2, 1, 0)


def test_the_flex_mask_says_what_the_dense_one_says() -> None:
    tensors = share_rows([Line(3, 4, (0, 1, 2, 3), "p"), Line(3, 2, (0, 1), "p"), Line(2, 3, (0,), "q")])
    for window in (None, 3):
        dense = block_mask(tensors, window)[:, 0]
        rows, length = tensors["owner"].shape
        row, query, key = torch.meshgrid(torch.arange(rows), torch.arange(length), torch.arange(length), indexing="ij")
        real = tensors["owner"][:, :, None].expand_as(dense) != PADDING
        flex = flex_mask(tensors, window).mask_mod(row, torch.zeros(()), query, key)
        assert torch.equal(flex[real], dense[real])


@pytest.mark.gpu
def test_flex_attention_gives_the_gradients_of_the_dense_mask() -> None:
    gradients = []
    for attention in ("sdpa", "flex_attention"):
        model = tiny_llama(258, initializer_range=0.3).cuda()
        model.set_attn_implementation(attention)
        policy = policy_of(model)
        assert policy.shares
        policy(policy.collate(SAMPLES).to("cuda")).log_probs.sum().backward()
        gradients.append([parameter.grad for parameter in trainable(policy).values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
