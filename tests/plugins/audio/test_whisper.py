"""The `whisper` policy: its scores are the model's own, a clip is encoded once, and the window is cut as said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyalign.errors import ConfigError, RecordError
from polyalign.policies.config import LoraConfig
from polyalign.policies.reference import AdaptersOff, FrozenCopy
from polyalign.records.modality import decoded
from polyalign.records.samples import Prompt, Sample
from polyalign_audio import fixture
from polyalign_audio.clips import chirp
from polyalign_audio.config import WhisperConfig
from polyalign_audio.whisper import cut_window


def test_scores_are_those_of_the_models_own_forward(samples: list[Sample], own_log_probs: Callable[..., float]) -> None:
    """Each sample alone through WhisperForConditionalGeneration, spectrogram and all, against a batch in shared rows."""
    policy = fixture.whisper_policy()
    batch = policy.collate(samples)
    assert policy.mode == "decoder" and policy.shares and len(policy.rows(batch).tensors["input_ids"]) == 4
    found = policy(batch).log_probs[:, 0].sum(-1)
    for number, sample in enumerate(samples):
        row = policy.collator.encode(sample)
        ids = [*row.prompt, *row.response]
        clip = decoded(sample.prompt[0].parts[0].media, sample.media).at(16_000)
        heard = policy.encoder.processor.feature_extractor(clip.samples, sampling_rate=16_000, return_tensors="pt")
        logits = policy.model(heard["input_features"], decoder_input_ids=torch.tensor([ids])).logits[0]
        assert float(found[number]) == pytest.approx(own_log_probs(logits, ids, len(row.response)), abs=1e-3)


def test_shared_rows_equal_plain_rows(samples: list[Sample]) -> None:
    shared, plain = fixture.whisper_policy(), fixture.whisper_policy(rows="plain")
    rows = [policy(policy.collate(samples)).log_probs for policy in (shared, plain)]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a row attends to one clip"):
        WhisperConfig(base="tiny", rows="packed")


@pytest.mark.parametrize("settings", [{"lora": LoraConfig(rank=4)}, {"lora": None}])
def test_a_frozen_encoder_hears_each_clip_once_for_policy_and_reference(
    samples: list[Sample], settings: dict[str, Any], passes: Any
) -> None:
    policy = fixture.whisper_policy(**settings)
    policy.enable_gradient_checkpointing()
    policy.train()
    count = passes(policy.model.model.encoder)  # and of its copy, which takes the hook along
    reference = AdaptersOff(policy) if policy.has_adapters else FrozenCopy(policy)
    count.clips = 0
    batch = policy.collate([*samples[:4], *samples[:2]]).to("cpu")
    frozen = reference(batch).log_probs
    scores = policy(batch)
    torch.testing.assert_close(scores.log_probs.detach(), frozen)
    scores.log_probs.sum().backward()
    assert count.clips == 2
    assert not any(p.grad is not None for p in policy.model.model.encoder.parameters())


def test_an_encoder_that_trains_gets_gradients(samples: list[Sample]) -> None:
    policy = fixture.whisper_policy(lora=None, tower="full")
    policy(policy.collate(samples[:2])).log_probs.sum().backward()
    assert policy.model.model.encoder.conv1.weight.grad.abs().sum() > 0


def test_states_on_disk_give_the_same_scores_without_the_encoder(samples: list[Sample], tmp_path: Path, passes: Any) -> None:
    plain, cached = fixture.whisper_policy(), fixture.whisper_policy(cache_features=True)
    cached.prepare(samples, tmp_path)
    count = passes(cached.model.model.encoder)
    torch.testing.assert_close(cached(cached.collate(samples)).log_probs, plain(plain.collate(samples)).log_probs)
    assert count.clips == 0


def test_greedy_answers_are_the_models_own(samples: list[Sample]) -> None:
    """Token by token by the argmax of the model's own logits."""
    policy = fixture.whisper_policy()
    prompts = [Prompt.of(sample.prompt, sample.media) for sample in samples[::2]]
    found = policy.generate(prompts, temperature=0.0, max_new_tokens=5)
    for prompt, rollout in zip(prompts, found):
        clip = decoded(prompt[0].parts[0].media, prompt.media).at(16_000)
        heard = policy.encoder.processor.feature_extractor(clip.samples, sampling_rate=16_000, return_tensors="pt")
        ids = list(policy.encoder.start)
        for _ in rollout.decisions[0].ids:
            logits = policy.model(heard["input_features"], decoder_input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
        assert ids[len(policy.encoder.start) :] == rollout.decisions[0].ids.tolist()


def test_what_it_cannot_hear_is_said_before_training(asked: Callable[..., Prompt]) -> None:
    policy = fixture.whisper_policy()
    clip, long = chirp(0.2, 8000), chirp(1.2, 8000)
    for prompt, says in (
        (asked("What is it?"), "holds no medium, but this policy hears one clip"),
        (asked(clip, clip), "holds audio, audio"),
        (asked(long), r"clip of 1.20 s is longer than the 1 s that the model hears"),
        (asked(clip, media=None), "came without its media source"),
    ):
        with pytest.raises(RecordError, match=says):
            policy.collator.generation_prompt(prompt, 4)


def test_a_cut_window_keeps_the_first_positions_and_is_saved_with_the_model(samples: list[Sample], tmp_path: Path) -> None:
    """A window of two seconds cut to one scores as an encoder whose last positions were never there."""
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    model, processor = fixture.tiny_whisper()
    encoder = model.model.encoder
    long = torch.nn.Embedding(2 * fixture.STATES, model.config.d_model)
    long.weight.data[: fixture.STATES] = encoder.embed_positions.weight.data
    encoder.embed_positions, model.config.max_source_positions = long, 2 * fixture.STATES
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=fixture.MELS, chunk_length=2)
    cut_window(model, processor, 1)
    policy, plain = fixture.whisper_policy((model, processor)), fixture.whisper_policy()
    expected = plain(plain.collate(samples)).log_probs
    torch.testing.assert_close(policy(policy.collate(samples)).log_probs, expected)
    policy.save_merged(tmp_path)
    made = WhisperForConditionalGeneration.from_pretrained(tmp_path), WhisperProcessor.from_pretrained(tmp_path)
    again = fixture.whisper_policy(made, lora=None)
    torch.testing.assert_close(again(again.collate(samples)).log_probs, expected)
    with pytest.raises(ConfigError, match="policy.seconds=2 is longer than the 1 s"):
        cut_window(*made, 2)
