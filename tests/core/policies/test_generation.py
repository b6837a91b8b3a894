"""Sampling: the right distribution, keyed per prompt, with log-probabilities that scoring reproduces."""

from __future__ import annotations

import pytest
import torch

from polyalign.errors import ConfigError
from polyalign.policies.base import Tokens
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.generation import Decoding, KeyedSampler, nucleus
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.schema import Message


def ask(text: str) -> tuple[Message, ...]:
    return (Message(role="user", parts=text),)  # type: ignore[arg-type]


PROMPTS = [ask("Hi"), ask("Name a rather long list of fruits."), ask("Why?")]


@pytest.fixture(scope="module")
def policy() -> TokenPolicy:
    model = tiny_llama(258, initializer_range=0.2, eos_token_id=256).double()
    return TokenPolicy(model, PromptResponseEncoder(byte_tokenizer()), TokensConfig(max_length=100, max_response=60))


def test_the_sampler_follows_the_tempered_distribution() -> None:
    """Evenly spaced draws u cover the distribution exactly: each token's share is within one draw of its probability."""
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    draws = 1000
    uniforms = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws)[:, None]
    sampler = KeyedSampler(uniforms, Decoding(max_new_tokens=1, temperature=0.5))
    picked = sampler(torch.zeros(draws, 1), scores.expand(draws, 4)).argmax(-1)
    shares = torch.bincount(picked, minlength=4) / draws
    expected = torch.softmax(scores[0] / 0.5, -1)
    assert (shares - expected).abs().max() <= 1 / draws


def test_a_token_of_zero_probability_is_never_picked() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, 3)
    sampler = KeyedSampler(torch.tensor([[0.0], [1 - 1e-16]], dtype=torch.float64), Decoding(max_new_tokens=1))
    assert sampler(torch.zeros(2, 1), scores).argmax(-1).tolist() == [1, 1]


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, [1]), (0.51, [1, 3]), (0.8, [1, 3]), (0.81, [0, 1, 3]), (1.0, [0, 1, 2, 3])])
def test_nucleus_keeps_the_smallest_set_that_reaches_top_p(top_p: float, kept: list[int]) -> None:
    probabilities = torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64)
    assert nucleus(probabilities, top_p)[0].nonzero().flatten().tolist() == kept


def ids_of(rollouts: object) -> list[list[int]]:
    return [rollout.decisions[0].ids.tolist() for rollout in rollouts]  # type: ignore[attr-defined]


def test_a_prompts_responses_depend_on_its_key_alone(policy: TokenPolicy) -> None:
    settings = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.95}
    together = policy.generate(PROMPTS, samples_per_prompt=2, seed=3, **settings)
    assert [rollout.prompt for rollout in together] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert ids_of(policy.generate(PROMPTS, samples_per_prompt=2, seed=3, **settings)) == ids_of(together)
    assert ids_of(policy.generate(PROMPTS, samples_per_prompt=2, seed=3, batch_size=1, **settings)) == ids_of(together)
    assert ids_of(policy.generate(PROMPTS[2:], samples_per_prompt=2, seed=3, **settings)) == ids_of(together)[4:]
    assert ids_of(policy.generate(PROMPTS, seed=3, **settings)) == ids_of(together)[::2]
    assert ids_of(policy.generate(PROMPTS, samples_per_prompt=2, seed=4, **settings)) != ids_of(together)
    assert ids_of(together)[0] != ids_of(together)[1]


def test_old_log_probs_are_the_models_own_at_the_decoding_temperature(policy: TokenPolicy) -> None:
    for rollout in policy.generate(PROMPTS, seed=1, max_new_tokens=9, temperature=0.7):
        prompt = policy.encoder.prompt_ids(rollout.prompt)
        (decision,) = rollout.decisions
        assert isinstance(decision, Tokens)
        whole = torch.tensor([*prompt, *decision.ids.tolist()])
        with torch.no_grad():
            log_probs = (policy.model(whole[None]).logits[0] / 0.7).log_softmax(-1)
        expected = log_probs[len(prompt) - 1 : -1].gather(1, decision.ids[:, None])[:, 0]
        torch.testing.assert_close(rollout.old_log_probs.double(), expected, atol=2e-6, rtol=1e-6)
        again = policy(policy.collator.of_rollouts([rollout]))
        torch.testing.assert_close(again.log_probs[0, 0], rollout.old_log_probs, atol=1e-6, rtol=0)


def test_a_prompt_is_rendered_once_for_all_rollouts_of_its_group(policy: TokenPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = policy.generate(PROMPTS[:2], samples_per_prompt=3, seed=1, max_new_tokens=5)
    alone = [policy.collator.of_rollouts([rollout]) for rollout in rollouts]
    asked = []
    inner = policy.encoder.prompt
    monkeypatch.setattr(policy.encoder, "prompt", lambda prompt, media: asked.append(prompt) or inner(prompt, media))
    together = policy.collator.of_rollouts(rollouts)
    assert asked == PROMPTS[:2]
    for number, batch in enumerate(alone):
        length = batch.tensors["input_ids"].shape[1]
        assert torch.equal(together.tensors["input_ids"][number, :length], batch.tensors["input_ids"][0])
        assert int(together.tensors["attention_mask"][number].sum()) == length


def test_temperature_zero_is_greedy(policy: TokenPolicy) -> None:
    (rollout,) = policy.generate(PROMPTS[:1], max_new_tokens=6, temperature=0)
    ids = list(policy.encoder.prompt_ids(PROMPTS[0]))
    for token in ids_of([rollout])[0]:
        with torch.no_grad():
            assert int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_a_response_ends_with_its_first_end_token_and_padding_is_cut(policy: TokenPolicy) -> None:
    """Enough samples that some stop early; padding has the end token's id, so a kept padding would show as a second one."""
    rollouts = policy.generate(PROMPTS[:1], samples_per_prompt=64, max_new_tokens=40, temperature=2.0)
    end = policy.tokenizer.eos_token_id
    stopped = [ids for ids in ids_of(rollouts) if len(ids) < 40]
    assert stopped
    assert all(ids[-1] == end and ids.count(end) == 1 for ids in stopped)
    assert all(rollout.output == rollout.parts[0].text and "<|end|>" not in rollout.output for rollout in rollouts)  # type: ignore[union-attr]


def test_settings_saved_with_the_model_do_not_leak_into_sampling(policy: TokenPolicy) -> None:
    expected = ids_of(policy.generate(PROMPTS, seed=5, max_new_tokens=8))
    saved = policy.model.generation_config
    try:
        policy.model.generation_config = type(saved)(
            eos_token_id=256, do_sample=True, temperature=0.1, top_k=1, repetition_penalty=5.0, max_length=3
        )
        assert ids_of(policy.generate(PROMPTS, seed=5, max_new_tokens=8)) == expected
    finally:
        policy.model.generation_config = saved


def test_the_training_flag_survives_and_long_prompts_leave_room(policy: TokenPolicy) -> None:
    policy.train()
    (rollout,) = policy.generate([ask("x" * 300)], max_new_tokens=50)
    assert policy.training
    assert len(policy.collator.generation_prompt(rollout.prompt, 50)) == 50
    assert rollout.old_log_probs is not None and len(rollout.old_log_probs) == len(ids_of([rollout])[0])


def test_bad_settings_are_refused_by_name(policy: TokenPolicy) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
        policy.generate(PROMPTS, temprature=1.0)
    with pytest.raises(ConfigError, match="top_p=0"):
        policy.generate(PROMPTS, top_p=0)
    with pytest.raises(ConfigError, match="max_length=100"):
        policy.generate(PROMPTS, max_new_tokens=100)
