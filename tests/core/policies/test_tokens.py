"""Scores of the token family against log-probabilities computed by hand from the model's full logits."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from polyalign.errors import TrainingError
from polyalign.policies.adapters import add_lora, trainable
from polyalign.policies.base import Kind
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import LoraConfig, TokensConfig
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.token_collator import with_token_targets
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Sample
from polyalign.records.schema import Message, TextPart

LIMITS = TokensConfig(max_length=200, max_response=80)
PAIRS = [("Name a red fruit.", "Cherry."), ("Hi", "A much longer answer than the first one."), ("Why?", "")]


def sample(prompt: str, response: str) -> Sample:
    message = Message(role="user", parts=prompt)  # type: ignore[arg-type]
    return Sample(prompt, (message,), (TextPart(text=response),), draw_key=prompt)


SAMPLES = [sample(*pair) for pair in PAIRS]


def policy_of(model: Any, tokenizer: Any = None, **settings: Any) -> TokenPolicy:
    return TokenPolicy(model, PromptResponseEncoder(tokenizer or byte_tokenizer()), LIMITS, **settings)


@pytest.fixture(scope="module")
def policy() -> TokenPolicy:
    """A tiny Llama in float64, so that only the final float32 rounding (about 5e-7) is left in comparisons."""
    return policy_of(tiny_llama(258, initializer_range=0.3).double())


def by_hand(policy: TokenPolicy, item: Sample, temperature: float = 1.0) -> torch.Tensor:
    """Log-softmax of the whole sequence's logits, read one position before each response token. No padding, no batch."""
    encoded = policy.collator.encode(item)
    ids = torch.tensor(encoded.prompt + encoded.response)
    with torch.no_grad():
        logits = policy.model(ids[None]).logits[0].double() / temperature
    log_probs = logits.log_softmax(-1)
    first = len(encoded.prompt)
    return torch.stack([log_probs[at - 1, ids[at]] for at in range(first, len(ids))])


def test_log_probs_equal_a_hand_computation_from_full_logits(policy: TokenPolicy) -> None:
    scores = policy(policy.collate(SAMPLES))
    assert scores.log_probs.dtype == torch.float32
    assert (scores.kind == Kind.TOKEN).all()
    for row, item in enumerate(SAMPLES):
        expected = by_hand(policy, item)
        mask = scores.mask[row, 0]
        torch.testing.assert_close(scores.log_probs[row, 0][mask].double(), expected, atol=1e-6, rtol=1e-6)
        assert (scores.log_probs[row, 0][~mask] == 0).all()


def test_neighbours_order_and_padding_do_not_change_scores(policy: TokenPolicy) -> None:
    together = policy(policy.collate(SAMPLES)).reduced()
    turned = policy(policy.collate(SAMPLES[::-1])).reduced().flip(0)
    alone = torch.cat([policy(policy.collate([item])).reduced() for item in SAMPLES])
    wide = policy.collate(SAMPLES)
    for name, filler in [("input_ids", 7), ("attention_mask", 0), ("position_ids", 3)]:  # padding's ids are never looked at
        padding = torch.full((len(SAMPLES), 11), filler)
        wide.tensors[name] = torch.cat([wide.tensors[name], padding], dim=1)
    for other in (turned, alone, policy(wide).reduced()):
        torch.testing.assert_close(other, together, atol=1e-6, rtol=1e-6)


def test_only_the_response_and_its_end_token_are_scored_though_padding_is_the_end_token(policy: TokenPolicy) -> None:
    tokenizer = policy.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = policy.collate(SAMPLES)
    for row, (_, response) in enumerate(PAIRS):
        scored = batch.tensors["targets"][row][batch.mask[row, 0]].tolist()
        assert scored[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(scored[:-1]) == response
        assert scored.count(tokenizer.eos_token_id) == 1


def test_the_end_token_of_a_padded_row_gets_a_gradient(policy: TokenPolicy) -> None:
    """The empty response has one decision, its end token; raising its log-probability must move the weights."""
    scores = policy(policy.collate(SAMPLES))
    assert scores.mask[2].sum() == 1
    (gradient,) = torch.autograd.grad(scores.log_probs[2, 0, 0], [policy.model.get_input_embeddings().weight])
    assert gradient[policy.tokenizer.eos_token_id].abs().sum() > 0


def test_extras_agree_with_dense_computations() -> None:
    """Entropy, top-K targets, pooled state and values from full logits and hidden states, one sample at a time."""
    policy = policy_of(tiny_llama(258, initializer_range=0.3).double(), value_head=True)
    torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    batch = policy.collate(SAMPLES)
    rows, scored = batch.mask.shape[0], batch.mask.shape[2]
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 258, (rows, scored, 5), generator=draw)
    values = torch.rand(rows, scored, 5, generator=draw)
    want = frozenset({"entropy", "log_sum_squares", "hidden", "values", "token_targets"})
    extras = policy(with_token_targets(batch, ids, values), want).extras  # type: ignore[arg-type]
    for row, item in enumerate(SAMPLES):
        encoded = policy.collator.encode(item)
        with torch.no_grad():
            output = policy.model(torch.tensor([encoded.prompt + encoded.response]), output_hidden_states=True)
        first, count = len(encoded.prompt), len(encoded.response)
        log_probs = output.logits[0, first - 1 : first - 1 + count].log_softmax(-1)
        states = output.hidden_states[-1][0]
        near = {"atol": 2e-6, "rtol": 1e-5, "check_dtype": False}
        torch.testing.assert_close(extras["entropy"][row, :count], -(log_probs.exp() * log_probs).sum(-1), **near)
        torch.testing.assert_close(extras["log_sum_squares"][row, :count], log_probs.exp().square().sum(-1).log(), **near)
        dense = torch.zeros_like(log_probs).scatter_add(1, ids[row, :count], values[row, :count].double())
        torch.testing.assert_close(extras["token_targets"][row, :count], (dense * log_probs).sum(-1), **near)
        torch.testing.assert_close(extras["target_log_probs"][row, :count], log_probs.gather(1, ids[row, :count]), **near)
        torch.testing.assert_close(extras["hidden"][row], states[-1], **near)
        expected = policy.value_head(states[first - 1 : first - 1 + count].float())[:, 0]  # type: ignore[misc]
        torch.testing.assert_close(extras["values"][row, :count], expected, **near)
        assert (extras["entropy"][row, count:] == 0).all()
    assert not extras["log_sum_squares"].requires_grad


def test_asking_for_what_is_not_there_says_the_way_out(policy: TokenPolicy) -> None:
    batch = policy.collate(SAMPLES[:1])
    with pytest.raises(TrainingError, match="value_head: true"):
        policy(batch, frozenset({"values"}))
    with pytest.raises(TrainingError, match="with_token_targets"):
        policy(batch, frozenset({"token_targets"}))
    with pytest.raises(TrainingError, match="'sample_grad'"):
        policy(batch, frozenset({"sample_grad"}))
    with pytest.raises(ValueError, match=r"\[N, T, K\]"):
        with_token_targets(batch, torch.zeros(1, 1, 1, dtype=torch.long), torch.zeros(1, 1, 1))  # type: ignore[arg-type]


def lora_policy(**lora: Any) -> TokenPolicy:
    model = tiny_llama(258, initializer_range=0.3)
    add_lora(model, LoraConfig(rank=4, **lora), seed=1)
    return policy_of(model)


def test_with_adapters_off_scores_equal_the_base_bitwise() -> None:
    policy, batch_of = lora_policy(), SAMPLES
    batch = policy.collate(batch_of)
    base = policy_of(tiny_llama(258, initializer_range=0.3))
    expected = base(batch).log_probs
    assert torch.equal(policy(batch).log_probs, expected)  # LoRA starts as the identity
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter += 0.1
    assert not torch.allclose(policy(batch).log_probs, expected)
    with policy.as_reference():
        assert torch.equal(policy(batch).log_probs, expected)
    assert not torch.allclose(policy(batch).log_probs, expected)
    assert policy.fingerprint() == base.fingerprint()


def test_what_trains_in_full_beside_adapters_trains_on_after_the_reference_was_asked() -> None:
    """transformers switches such modules off for the base model, and not on again."""
    model = tiny_llama(258, initializer_range=0.3)
    add_lora(model, LoraConfig(rank=4), seed=1, in_full=["model.norm"])
    policy = policy_of(model)
    batch, names = policy.collate(SAMPLES), set(trainable(policy))
    base = policy(batch).log_probs.detach()
    with torch.no_grad():
        for name, parameter in trainable(policy).items():
            parameter += 0.1 * ("lora_" not in name)
    tuned = policy(batch).log_probs.detach()
    with policy.as_reference():
        assert torch.equal(policy(batch).log_probs, base)
    assert torch.equal(policy(batch).log_probs, tuned) and not torch.allclose(tuned, base)
    assert set(trainable(policy)) == names and any("norm" in name for name in names)
    policy(batch).reduced().sum().backward()
    assert all(parameter.grad is not None for parameter in trainable(policy).values())


def test_a_policy_without_adapters_says_so_when_asked_for_the_base(policy: TokenPolicy) -> None:
    assert not policy.has_adapters
    with pytest.raises(TrainingError, match="frozen_copy"), policy.as_reference():
        pass


def test_only_adapters_train_and_they_keep_their_own_dropout() -> None:
    policy = lora_policy(dropout=0.5)
    assert trainable(policy) and all("lora_" in name for name in trainable(policy))
    assert any(module.p == 0.5 for module in policy.modules() if isinstance(module, torch.nn.Dropout))
    batch = policy.collate(SAMPLES)
    policy(batch).reduced().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainable(policy).values())


def architectures() -> dict[str, Any]:
    """Tiny random models whose heads differ: dropout rates, learned positions, soft caps, logit scales. Weights are drawn wide
    so that a forgotten scale or cap shows."""
    import transformers as t

    small = {"vocab_size": 258, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None, "initializer_range": 0.5}
    wide = small | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "llama-dropout": t.LlamaConfig(**wide, num_key_value_heads=2, attention_dropout=0.3),
        "gpt2-dropout": t.GPT2Config(**small, n_embd=32, n_layer=2, n_head=4, n_positions=256),
        "opt": t.OPTConfig(
            **(small | {"pad_token_id": 1}),
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=16,
        ),
        "gemma2-softcap": t.Gemma2Config(**wide, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0),
        "cohere-scale": t.CohereConfig(**wide, num_key_value_heads=2, logit_scale=0.1),
        "granite-scaling": t.GraniteConfig(**wide, num_key_value_heads=2, logits_scaling=4.0),
        "qwen3": t.Qwen3Config(**wide, num_key_value_heads=2, head_dim=8),
    }
    return configs


@pytest.mark.parametrize("name", list(architectures()))
def test_scores_are_exact_for_architectures_with_unlike_heads_and_dropout_stays_off_in_training(name: str) -> None:
    import transformers

    torch.manual_seed(0)
    policy = policy_of(transformers.AutoModelForCausalLM.from_config(architectures()[name]))
    assert policy.splits
    policy.eval()
    batch = policy.collate(SAMPLES)
    scores = policy(batch)
    for row, item in enumerate(SAMPLES):
        found = scores.log_probs[row, 0][scores.mask[row, 0]]
        torch.testing.assert_close(found, by_hand(policy, item), atol=2e-5, rtol=1e-5, check_dtype=False)
    policy.train()
    assert torch.equal(policy(batch).log_probs, scores.log_probs)


def test_a_model_that_cannot_be_split_is_scored_through_its_own_forward(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import LlamaForCausalLM

    class Doubled(LlamaForCausalLM):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            output = super().forward(*arguments, **named)
            output.logits = output.logits * 2
            return output

    with caplog.at_level("WARNING"):
        policy = policy_of(Doubled(tiny_llama(258, initializer_range=0.3).config).double())
    assert not policy.splits
    assert "Doubled" in caplog.text
    scores = policy(policy.collate(SAMPLES), frozenset({"hidden"}))
    for row, item in enumerate(SAMPLES):
        found = scores.log_probs[row, 0][scores.mask[row, 0]]
        torch.testing.assert_close(found, by_hand(policy, item), atol=1e-6, rtol=1e-6, check_dtype=False)
    assert scores.extras["hidden"].shape == (3, 32)


def test_a_subclass_can_change_embed_and_nothing_else() -> None:
    class Shifted(TokenPolicy):
        def embed(self, batch: Any, media: Any) -> torch.Tensor:
            return super().embed(batch, media) + (0.5 if batch.samples else 0.0)  # the probe at build time has no samples

    model = tiny_llama(258, initializer_range=0.3)
    plain, shifted = policy_of(model), Shifted(model, PromptResponseEncoder(byte_tokenizer()), LIMITS)
    batch = plain.collate(SAMPLES)
    assert not torch.allclose(plain(batch).log_probs, shifted(batch).log_probs)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointed in (False, True):
        policy = lora_policy()
        if checkpointed:
            policy.enable_gradient_checkpointing()
        policy.train()
        policy(policy.collate(SAMPLES)).reduced().sum().backward()
        gradients.append([parameter.grad for parameter in trainable(policy).values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_scores_are_float32_and_close_under_bfloat16_autocast(policy: TokenPolicy) -> None:
    single = policy_of(tiny_llama(258, initializer_range=0.3))
    batch = single.collate(SAMPLES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = single(batch, frozenset({"entropy"}))
    assert scores.log_probs.dtype == torch.float32 and scores.extras["entropy"].dtype == torch.float32
    torch.testing.assert_close(scores.log_probs, single(batch).log_probs, atol=0.15, rtol=0.05)


def test_a_pickled_collator_makes_the_same_batch(policy: TokenPolicy) -> None:
    copy = pickle.loads(pickle.dumps(policy.collator))
    one, other = policy.collate(SAMPLES), copy(SAMPLES)
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert torch.equal(one.mask, other.mask)
    assert copy.cost(SAMPLES[1]) == int(one.tensors["attention_mask"][1].sum())
    assert one.cache_keys == tuple(item.content_key() for item in SAMPLES)


def test_the_fingerprint_follows_weights_template_and_limits(policy: TokenPolicy) -> None:
    model = tiny_llama(258, initializer_range=0.3)
    first = policy_of(model).fingerprint()
    assert policy_of(tiny_llama(258, initializer_range=0.3)).fingerprint() == first
    assert policy_of(tiny_llama(258, initializer_range=0.3, seed=1)).fingerprint() != first
    assert policy_of(model, byte_tokenizer(template=None)).fingerprint() != first
    shorter = TokenPolicy(model, PromptResponseEncoder(byte_tokenizer()), TokensConfig(max_length=100, max_response=80))
    assert shorter.fingerprint() != first
