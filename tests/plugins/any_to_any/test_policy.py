"""One stream of words and codes: scores, kinds, new words, generation, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from polyalign.errors import ConfigError, RecordError
from polyalign.policies.base import Kind
from polyalign.policies.config import LoraConfig
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.samples import Prompt, Sample
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.records.views import VIEWS
from polyalign_any_to_any import fixture as own
from polyalign_any_to_any import native_fixture as native
from polyalign_any_to_any.config import AnyToAnyConfig
from polyalign_any_to_any.policy import assembled, build
from polyalign_audio.modality import Clip

MAKES = {"chameleon": native.tiny_chameleon, "emu3": native.tiny_emu3, "janus": native.tiny_janus}


def policy_of(kind: str, **settings: Any) -> Any:
    return native.policy(MAKES[kind], **settings) if kind in MAKES else own.policy(**settings)


def samples_of(kind: str) -> list[Sample]:
    records, media = own.records(("image",) if kind in MAKES else ("image", "audio"))
    return [sample for record in records[:4] for example in VIEWS["pairs"](record, media) for sample in example.samples]


def prompt_of(sample: Sample) -> Prompt:
    return Prompt.of(sample.prompt, sample.media)


@pytest.mark.parametrize("kind", ["any-to-any", *MAKES])
def test_scores_are_the_models_own_within_what_may_stand_there(kind: str) -> None:
    """Brute force: the body's states of the whole row, its heads, and a softmax over the ids that the previous id allows."""
    policy = policy_of(kind).eval()
    (sample, *_) = samples_of(kind)
    batch = policy.collate([sample])
    scores = policy(batch).log_probs[0, 0][batch.mask[0, 0]]
    plain = policy_of(kind, rows="plain").eval()
    ids = batch.tensors["input_ids"][0]
    states = plain.states(batch)[0]
    heads = [policy.model.get_output_embeddings()(states)]
    if kind == "janus":
        heads.append(policy.model.model.generation_head(states))
    logits = torch.cat(heads, -1)
    expected, start, known = [], int(batch.tensors["prompt"][0]), policy.vocabulary
    for place in range(start, len(ids)):
        if int(ids[place]) not in known.unscored:
            reachable = known.allowed[known.follows[ids[place - 1]]]
            expected.append(logits[place - 1, ids[place]] - logits[place - 1][reachable].logsumexp(0))
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["any-to-any", *MAKES])
def test_responses_with_media_share_their_prompts_row_exactly(kind: str) -> None:
    policy, plain = policy_of(kind), policy_of(kind, rows="plain")
    assert policy.shares
    samples = samples_of(kind)
    shared, apart = policy(policy.collate(samples)).log_probs, plain(plain.collate(samples)).log_probs
    torch.testing.assert_close(shared, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", MAKES)
def test_without_lora_all_but_autoencoder_and_vision_tower_learns_from_text_and_pictures(kind: str) -> None:
    policy = policy_of(kind, lora=None)
    policy(policy.collate(samples_of(kind))).log_probs.sum().backward()
    still = {name.split(".")[2] for name, weight in policy.named_parameters() if weight.grad is None}
    assert still == {"vqmodel", *(["vision_model"] if kind == "janus" else [])}


def test_codes_are_decisions_of_their_own_kind() -> None:
    policy = own.policy()
    batch = policy.collate(samples_of("any-to-any")[:1])
    media = (batch.kind == int(Kind.MEDIA)) & batch.mask[:, 0]
    ids = batch.tensors["targets"][media].tolist()
    assert [policy.tokenizer.decode([token])[:8] for token in ids] == ["<|image:"] * 4 + ["<|audio:"] * 4


@pytest.mark.parametrize("tied", [True, False])
def test_new_words_leave_the_old_ones_as_they_were(tied: bool) -> None:
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer), layers=1, tie_word_embeddings=tied)
    words, head = model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()
    old = len(tokenizer)
    policy = assembled(model, tokenizer, own.small_media(), AnyToAnyConfig(base="tiny", max_length=160, max_response=48))
    assert policy.vocabulary.size == old + 2 * (8 + 2)  # eight codes and two markers for each of two media
    assert torch.equal(model.get_input_embeddings().weight[:old], words)
    assert torch.equal(model.get_output_embeddings().weight[:old], head)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


def test_with_lora_the_new_rows_train_too_and_the_reference_is_the_start() -> None:
    policy = own.policy(lora=LoraConfig(rank=2))
    trained = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert any("lora_" in name for name in trained) and any("embed_tokens" in name for name in trained)
    batch = policy.collate(samples_of("any-to-any"))
    before = policy(batch).log_probs.detach()
    for weight in policy.parameters():
        if weight.requires_grad:
            weight.data += 0.01
    assert not torch.allclose(policy(batch).log_probs, before)
    with policy.as_reference():
        torch.testing.assert_close(policy(batch).log_probs, before)


@pytest.mark.parametrize("kind", ["any-to-any", "emu3", "janus"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_is_asked_for_is_what_comes(kind: str, guidance: float) -> None:
    policy = policy_of(kind)
    prompt = prompt_of(samples_of(kind)[0])
    wanted = {"image": Image.Image, "text": str} | ({"audio": Clip} if kind == "any-to-any" else {})
    for modality, what in wanted.items():
        rollouts = policy.generate([prompt], samples_per_prompt=2, max_new_tokens=20, respond=modality, guidance=guidance)
        for rollout in rollouts:
            assert isinstance(rollout.output, what) and rollout.modalities == (modality,)
            batch = policy.collator.of_rollouts([rollout])
            torch.testing.assert_close(policy(batch).log_probs[batch.mask], rollout.old_log_probs, rtol=1e-4, atol=1e-4)


def test_generation_does_not_depend_on_the_company() -> None:
    policy = own.policy()
    prompts = [prompt_of(sample) for sample in samples_of("any-to-any")[::2]]
    alone = policy.generate(prompts[:1], max_new_tokens=24, seed=3)
    among = policy.generate(prompts, max_new_tokens=24, seed=3)
    assert alone[0].decisions[0].ids.tolist() == among[0].decisions[0].ids.tolist()


def test_guidance_moves_what_is_drawn_away_from_the_prompt_without_messages() -> None:
    """With guidance 0 the codes depend on the form of the conversation only, so two prompts get the same picture."""
    policy = own.policy()
    prompts = [prompt_of(sample) for sample in samples_of("any-to-any")[::2][:2]]
    decoding = {"respond": "image", "temperature": 0.0, "max_new_tokens": 12}
    codes = [rollout.decisions[0].ids.tolist() for rollout in policy.generate(prompts, guidance=0.0, **decoding)]
    assert codes[0] == codes[1]
    assert policy.without_messages(policy.collator.generation_prompt(prompts[0], 12)).prompt != ()


def test_chameleon_reads_pictures_and_does_not_draw() -> None:
    with pytest.raises(ConfigError, match="cannot be made media again"):
        policy_of("chameleon").generate([prompt_of(samples_of("chameleon")[0])], respond="image")


def test_a_model_saved_with_its_media_tokenizers_is_the_same_model(tmp_path: Path) -> None:
    policy = own.policy()
    policy.save(tmp_path)
    again = build(AnyToAnyConfig(base=str(tmp_path), max_length=160, max_response=48))
    batch = policy.collate(samples_of("any-to-any"))
    torch.testing.assert_close(again(again.collate(samples_of("any-to-any"))).log_probs, policy(batch).log_probs)
    assert again.vocabulary.size == policy.vocabulary.size


def test_media_are_encoded_once_and_not_again_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, samples = own.policy(), samples_of("any-to-any")
    policy.prepare(samples, tmp_path)
    assert len(policy.encoder.codes) == 8  # four pictures, four sounds
    again = own.policy()
    for span in again.vocabulary.spans:
        monkeypatch.setattr(span.tokenizer, "encode", lambda medium: pytest.fail("encoded again"))
    again.prepare(samples, tmp_path)
    assert again.collate(samples).tensors["input_ids"].equal(policy.collate(samples).tensors["input_ids"])


def test_what_cannot_be_read_or_kept_whole_is_refused_with_the_way_out() -> None:
    policy, samples = own.policy(max_length=20, max_response=8), samples_of("any-to-any")
    with pytest.raises(RecordError, match="raise them"):
        policy.collate(samples)
    (audio,) = [part for part in samples[0].response if isinstance(part, MediaPart) and part.media.modality == "audio"]
    with pytest.raises(RecordError, match="audio part, but this policy reads and writes text, image"):
        policy_of("emu3").collate([Sample("one", samples[0].prompt, (audio,), "one", samples[0].media)])
    spelt = (Message(role="user", parts=(TextPart(text="look: <|image|>"),)),)
    with pytest.raises(RecordError, match="spells out"):
        own.policy().collate([Sample("two", spelt, (TextPart(text="no"),), "two")])
    with pytest.raises(ConfigError, match="cannot hold image"):
        own.policy().generate([spelt], respond="image", max_new_tokens=3)
