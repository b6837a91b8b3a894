"""The `audio-language` policy on a tiny Qwen2-Audio: its scores are the model's own, whatever stands among the words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polyalign.errors import RecordError
from polyalign.policies.reference import AdaptersOff
from polyalign.records.samples import Prompt, Sample
from polyalign.records.schema import MediaPart, TextPart
from polyalign_audio import fixture
from polyalign_audio.clips import chirp
from polyalign_audio.modality import Clip

CLIPS = (chirp(0.3, 16_000), chirp(0.5, 8_000, 900, 200))


def sample_of(prompt: Prompt, answer: str = "It rises.") -> Sample:
    return Sample("it", prompt, (TextPart(text=answer),), "it", media=prompt.media)


def as_content(part: TextPart | MediaPart) -> dict[str, str]:
    return {"type": "audio"} if isinstance(part, MediaPart) else {"type": "text", "text": part.text}


def prompts(asked: Callable[..., Prompt]) -> list[Prompt]:
    """One clip; two, with words between; the same clip twice; none."""
    return [
        asked(CLIPS[0], "What is it?"),
        asked("First: ", CLIPS[1], "then: ", CLIPS[0], "Alike?"),
        asked(CLIPS[0], CLIPS[0], "Alike?"),
        asked("What is sound?"),
    ]


def test_scores_are_those_of_the_models_own_forward(asked: Callable[..., Prompt], own_log_probs: Callable[..., float]) -> None:
    """Each prompt through Qwen2-Audio's processor and forward, alone, against one batch of all."""
    policy = fixture.language_policy()
    samples = [sample_of(prompt) for prompt in prompts(asked)]
    found = policy(policy.collate(samples)).log_probs[:, 0].sum(-1)
    processor = policy.encoder.processor
    for number, sample in enumerate(samples):
        turns = [{"role": message.role, "content": [as_content(part) for part in message.parts]} for message in sample.prompt]
        text = processor.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + "It rises.<|end|>"
        codec = policy.encoder.kinds["audio"]
        heard = [codec.open(sample.media.read(p.media)) for m in sample.prompt for p in m.parts if isinstance(p, MediaPart)]
        audio = {"audio": heard, "sampling_rate": 16_000} if heard else {}
        inputs = processor(text=[text], return_tensors="pt", add_special_tokens=False, **audio)
        ids = inputs["input_ids"][0].tolist()
        row = policy.collator.encode(sample)
        assert ids == [*row.prompt, *row.response]
        expected = own_log_probs(policy.model(**inputs).logits[0], ids, len(row.response))
        assert float(found[number]) == pytest.approx(expected, abs=1e-3)


def test_each_distinct_clip_is_encoded_once_for_policy_and_reference(asked: Callable[..., Prompt], passes: Any) -> None:
    policy = fixture.language_policy()
    policy.train()
    count = passes(policy.model.model.audio_tower)
    batch = policy.collate([sample_of(prompt, answer) for prompt in prompts(asked) for answer in ("It rises.", "It falls.")])
    AdaptersOff(policy)(batch)
    policy(batch).log_probs.sum().backward()
    assert count.clips == 2


def test_responses_share_their_prompt_and_its_clips(samples: list[Sample]) -> None:
    shared, plain = fixture.language_policy(), fixture.language_policy(rows="plain")
    assert shared.mode == "decoder" and shared.shares
    rows = [policy(policy.collate(samples)).log_probs for policy in (shared, plain)]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)


def test_greedy_answers_start_from_what_is_scored(asked: Callable[..., Prompt]) -> None:
    """Batched, left-padded generation gives each prompt the answer that it gets alone, the likeliest by what is scored."""
    policy = fixture.language_policy()
    together = policy.generate(prompts(asked), temperature=0.0, max_new_tokens=5)
    for prompt, rollout in zip(prompts(asked), together):
        (alone,) = policy.generate([prompt], temperature=0.0, max_new_tokens=5)
        assert alone.decisions[0].ids.tolist() == rollout.decisions[0].ids.tolist()
        likeliest = policy.likeliest(policy.collator.of_rollouts([rollout]), 1)[0][:, 0]
        assert likeliest.tolist() == rollout.decisions[0].ids.tolist()


def test_the_rate_of_a_file_is_heeded(asked: Callable[..., Prompt]) -> None:
    """align-anything ignores it: half a second at 8 kHz would pass for a quarter at 16 kHz. Here the same sound at
    either rate takes the same tokens, and nearly the same scores."""
    policy = fixture.language_policy()
    fine = chirp(0.5, 16_000)
    scores, lengths = [], []
    for clip in (fine, fine.at(8_000)):
        row = policy.collate([sample_of(asked(clip, "?"))])
        scores.append(float(policy(row).log_probs.sum()))
        lengths.append(row.tensors["input_ids"].shape[1])
    assert lengths[0] == lengths[1] and scores[0] == pytest.approx(scores[1], abs=0.05)


def test_a_clip_past_the_window_is_refused_and_not_cut_in_silence(asked: Callable[..., Prompt]) -> None:
    policy = fixture.language_policy()
    with pytest.raises(RecordError, match=r"clip of 1.50 s is longer than the 1 s"):
        policy.collate([sample_of(asked(chirp(1.5, 8_000), "?"))])


def test_media_of_other_kinds_and_spelt_out_placeholders_are_refused(asked: Callable[..., Prompt]) -> None:
    policy = fixture.language_policy()
    with pytest.raises(RecordError, match="spells the placeholder out"):
        policy.collate([sample_of(asked(CLIPS[0], "Is this <|AUDIO|>?"))])
    with pytest.raises(RecordError, match="the clips in the response"):
        tight = fixture.language_policy(max_response=3)
        clip = asked(Clip(CLIPS[0].samples, 16_000))[0].parts[0]
        prompt = asked("Say it.")
        tight.collate([Sample("it", prompt, (clip,), "it", media=prompt.media)])
