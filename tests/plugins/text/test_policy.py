"""The text policy: loaded from folders, saved as folders that transformers and peft load by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from polyalign.errors import ConfigError
from polyalign.plugins.registry import registry
from polyalign.policies.adapters import trainable
from polyalign.policies.base import Policy
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.views import VIEWS
from polyalign_text.config import TextConfig
from polyalign_text.fixture import build as tiny_policy
from polyalign_text.fixture import records
from polyalign_text.policy import build

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder, as transformers writes it."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_tokenizer()
    tiny_llama(len(tokenizer), initializer_range=0.3, attention_dropout=0.1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(base: Path | str, **settings: Any) -> TextConfig:
    return TextConfig.model_validate({"base": str(base), "max_length": 200, "max_response": 60, **settings})


def batch_of(policy: Policy) -> Any:
    return policy.collate(
        [sample for record in records()[:3] for example in VIEWS["pairs"](record, None) for sample in example.samples]
    )


def disturb(policy: Policy) -> None:
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)


def by_transformers(folder: Path, policy: Policy) -> torch.Tensor:
    """Sum of response log-probabilities, from the folder and the token ids alone, through transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    sums = []
    for item in batch_of(policy).samples:
        encoded = policy.collator.encode(item)  # type: ignore[attr-defined]
        ids = torch.tensor([encoded.prompt + encoded.response])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        sums.append(log_probs[len(encoded.prompt) - 1 :].sum())
    return torch.stack(sums)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_saved_folder_gives_identical_scores_through_plain_transformers(base: Path, tmp_path: Path, lora: Any) -> None:
    policy = build(config(base, lora=lora))
    disturb(policy)
    scores = policy(batch_of(policy)).reduced()[:, 0].detach()
    policy.save(tmp_path)
    torch.testing.assert_close(by_transformers(tmp_path, policy), scores, atol=2e-4, rtol=1e-5)
    assert (tmp_path / ("adapter_model.safetensors" if lora else "model.safetensors")).is_file()
    assert (tmp_path / "tokenizer.json").is_file() and not list(tmp_path.glob("*.bin"))
    again = build(config(tmp_path))
    torch.testing.assert_close(again(batch_of(again)).reduced()[:, 0], scores, atol=2e-4, rtol=1e-5)
    if not lora:
        assert '"attention_dropout": 0.1' in (tmp_path / "config.json").read_text()  # switched off for us, not for the next user


def test_a_run_that_starts_from_a_lora_folder_takes_it_as_its_reference(base: Path, tmp_path: Path) -> None:
    first = build(config(base, lora=LORA))
    disturb(first)
    first.save(tmp_path)
    second = build(config(tmp_path, lora=LORA), seed=3)
    batch = batch_of(first)
    trained = first(batch).log_probs
    torch.testing.assert_close(second(batch).log_probs, trained, atol=1e-4, rtol=1e-4)
    disturb(second)
    with second.as_reference():
        torch.testing.assert_close(second(batch).log_probs, trained, atol=1e-4, rtol=1e-4)
    before = second(batch).log_probs
    second.save(tmp_path / "second")
    assert torch.allclose(second(batch).log_probs, before, atol=1e-5)  # merging worked on a copy
    assert not (tmp_path / "second" / "adapter_config.json").exists()  # its base lies nowhere on disk
    sums = second(batch).reduced()[:, 0]
    torch.testing.assert_close(by_transformers(tmp_path / "second", second), sums, atol=1e-3, rtol=1e-4)


def test_the_seed_decides_the_adapters_and_nothing_else(base: Path) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (build(config(base, lora=LORA), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [torch.cat([p.flatten() for p in trainable(policy).values()]) for policy in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_value_head_is_saved_and_restored(base: Path, tmp_path: Path) -> None:
    policy = build(config(base, value_head=True))
    assert "values" in policy.provides
    disturb(policy)
    batch, want = batch_of(policy), frozenset({"values"})
    expected = policy(batch, want).extras["values"]
    assert expected.abs().sum() > 0
    policy.save(tmp_path)
    again = build(config(tmp_path, value_head=True))
    torch.testing.assert_close(again(batch, want).extras["values"], expected, atol=1e-4, rtol=1e-4)


def test_max_length_is_lowered_to_the_models_context(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        policy = build(config(base, max_length=4096))
    assert policy.collator.max_length == 512
    assert "using 512" in caplog.text
    with pytest.raises(ConfigError, match="context of 512"):
        build(config(base, max_length=4096, max_response=600))


def test_mistakes_in_the_configuration_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="leaves no room for the prompt"):
        config("x", max_length=100, max_response=100)
    with pytest.raises(ValidationError, match="Extra inputs"):
        config("x", max_lenght=100)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build(config(tmp_path))


def test_the_plugin_declares_what_the_policy_provides() -> None:
    spec = registry().get("policies", "text")
    policy = tiny_policy()
    assert frozenset(spec.provides) == policy.provides  # type: ignore[attr-defined]
    assert frozenset(spec.inputs) == policy.inputs and frozenset(spec.outputs) == policy.outputs  # type: ignore[attr-defined]
    assert spec.family == policy.family  # type: ignore[attr-defined]
    assert spec.load_config() is TextConfig
    assert policy.fingerprint() == tiny_policy().fingerprint()


def test_the_fixture_gives_four_pairs_and_two_grids() -> None:
    plain = [record for record in records() if "grid" not in record.tags]
    grids = [record for record in records() if "grid" in record.tags]
    assert [len(VIEWS["pairs"](record, None)) for record in plain] == [1, 1, 1, 1]
    for record in grids:
        (example,) = VIEWS["grids"](record, None)
        assert [(edge.better, edge.worse, edge.contrast) for edge in example.edges] == [
            (0, 1, "response"), (3, 2, "response"), (0, 2, "prompt"), (3, 1, "prompt")
        ]  # fmt: skip
