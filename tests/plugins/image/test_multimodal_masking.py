"""What is scored, and what is never cut: mistakes that multimodal trainers have shipped, each as a test of its own.

Published examples: prompts scored because a picture takes more tokens than its placeholder, windows moved by the end of a
turn, padding scored or read as the last token, pictures cut in two by truncation.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys.pictures import album, asked, parts_of, picture, sample
from toys.vision_language import ARCHITECTURES

from polyalign.errors import RecordError
from polyalign.policies.completion_mask import Piece
from polyalign.records.samples import Prompt
from polyalign_image.fixture import policy as policy_of
from polyalign_image.vision_language import VisionLanguagePolicy

SOME = ["llava", "llava_onevision", "qwen2_5_vl", "idefics2", "idefics3", "internvl", "gemma3", "mistral3", "aya_vision"]


def built(name: str, **settings: Any) -> VisionLanguagePolicy:
    return policy_of(ARCHITECTURES[name](), **{"max_length": 400, **settings}).eval()


def spelt(policy: VisionLanguagePolicy, text: str) -> list[int]:
    return list(policy.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@pytest.mark.parametrize("name", SOME)
def test_the_response_and_its_end_of_turn_are_scored_and_nothing_else(name: str) -> None:
    """However many tokens the pictures take, and though the template prints a newline behind the end of a turn."""
    policy = built(name)
    samples = [sample(asked(0, "?"), "Yes, it is."), sample(asked("Is ", 0, " like ", 1, "?"), "No"), sample(asked("Hm"), "")]
    batch = policy.collate(samples)
    end = policy.tokenizer.eos_token_id
    for number, item in enumerate(samples):
        row = policy.collator.encode(item)
        expected = [*spelt(policy, item.response[0].text), end]  # type: ignore[union-attr]
        scored = batch.mask[number, 0]
        assert batch.tensors["targets"][number][scored].tolist() == expected
        places = batch.tensors["predictors"][number][scored] + 1
        assert places.tolist() == list(range(len(row.prompt), len(row.prompt) + len(expected)))
        assert batch.tensors["input_ids"][number][places].tolist() == expected
    assert batch.tensors["prompt"].tolist() == [len(policy.collator.encode(item).prompt) for item in samples]


@pytest.mark.parametrize("name", SOME)
def test_what_stands_in_the_padding_changes_nothing(name: str) -> None:
    policy = built(name, rows="plain")
    batch = policy.collate([sample(asked(0, "?"), "A long answer to a short question."), sample(asked(1, "?"), "No")])
    expected = policy(batch, frozenset({"hidden"}))
    padding = batch.tensors["attention_mask"] == 0
    assert padding.any()
    batch.tensors["input_ids"][padding] = torch.arange(int(padding.sum())) % 50
    batch.memo.clear()
    found = policy(batch, frozenset({"hidden"}))
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.extras["hidden"], expected.extras["hidden"], rtol=0, atol=1e-5)


def test_padding_that_looks_like_a_picture_is_none() -> None:
    policy = built("llava")
    samples = [sample(asked(0, "?"), "A long answer to a short question."), sample(asked(1, "?"), "No")]
    expected = policy(policy.collate(samples)).log_probs
    (policy.collator.pad_id,) = policy.encoder.media_ids
    torch.testing.assert_close(policy(policy.collate(samples)).log_probs, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOME)
def test_the_state_of_a_pair_is_read_at_the_last_real_token_of_each(name: str) -> None:
    """A reward head that reads the last column scores the shorter response at a pad token, so length leaks in."""
    policy = built(name)
    pair = [sample(asked(0, "?"), "A long answer to a short question."), sample(asked(0, "?"), "No")]
    together = policy(policy.collate(pair), frozenset({"hidden"})).extras["hidden"]
    for number, item in enumerate(pair):
        alone = policy(policy.collate([item]), frozenset({"hidden"})).extras["hidden"][0]
        torch.testing.assert_close(together[number], alone, rtol=1e-4, atol=1e-4)


def test_pictures_in_a_response_are_read_and_not_scored() -> None:
    """The scores are those of the plain model on the whole text; another picture changes what stands behind it only."""
    policy = built("llava")
    scores = []
    for number in (0, 1):
        batch = policy.collate([sample(asked(1, "Draw."), "Here: ", number, " done")])
        expected = [*spelt(policy, "Here: "), *spelt(policy, " done"), *policy.encoder.end_ids]
        assert batch.tensors["targets"][0].tolist() == expected and batch.mask.all()
        scores.append(policy(batch).log_probs[0, 0])
        model, processor = ARCHITECTURES["llava"]()
        text = "<|start|>user\n<image>Draw.<|end|>\n<|start|>assistant\nHere: <image> done<|end|>"
        inputs = processor(text=[text], images=[picture(1), picture(number)], return_tensors="pt")
        ids = inputs["input_ids"][0]
        with torch.no_grad():
            log_probs = model(**inputs).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        after = (ids[1:] != processor.image_token_id).nonzero()[:, 0]
        torch.testing.assert_close(scores[-1], log_probs[after][-len(expected) :], rtol=0, atol=1e-4)
    before = len("Here: ")
    torch.testing.assert_close(scores[0][:before], scores[1][:before], rtol=0, atol=1e-5)
    assert (scores[0][before:] - scores[1][before:]).abs().min() > 1e-3


@pytest.mark.parametrize("name", SOME)
def test_truncation_drops_words_and_never_part_of_a_picture(name: str) -> None:
    """Also not the words that belong to a picture (Aya Vision's TILE_1, the line breaks of Idefics3)."""
    policy = built(name)
    encoder = policy.encoder
    prompt = asked("Look: ", 0, " " + "word " * 20, 1, " so?")
    whole = encoder.prompt(prompt, album()[0])
    places = encoder._places_of_media(whole)
    special = set(policy.tokenizer.all_special_ids)
    loose = [place for place, token in enumerate(whole.ids) if place not in places and token not in special]
    for surplus in (1, 8, len(loose)):
        row = encoder.fit(whole, Piece((5, 6, 7)), len(whole.ids) + 3 - surplus, 10, "a sample")
        assert (row.dropped, row.response, len(row)) == (surplus, (5, 6, 7), len(whole.ids) + 3 - surplus)
        assert row.prompt == tuple(token for place, token in enumerate(whole.ids) if place not in loose[:surplus])
        assert row.prompt_media == whole.media
        at = 0
        for medium in whole.media:  # each block in one piece and in order
            block = medium.block if name != "idefics2" else medium.block[1:]  # type: ignore[attr-defined]
            at = next(place for place in range(at, len(row)) if row.prompt[place : place + len(block)] == block) + len(block)
    with pytest.raises(RecordError, match=r"the prompt of sample 'x' takes \d+ tokens for its 2 pictures and cannot be cut"):
        encoder.fit(whole, Piece((5, 6, 7)), len(whole.ids) + 3 - len(loose) - 1, 10, "sample 'x'")


def test_a_response_may_lose_words_but_not_its_pictures() -> None:
    policy = built("llava")
    response = policy.encoder.response(parts_of(("See ", 0, " there")), album()[0])
    prompt = policy.encoder.prompt(asked(1, "?"), album()[0])
    placed = 4 + response.media[0].tokens
    row = policy.encoder.fit(prompt, response, 400, placed + 2, "a sample")
    assert row.response == response.ids[: placed + 2] and row.cut == len(response.ids) - placed - 2
    with pytest.raises(RecordError, match=r"pictures in the response of sample 'x' do not fit policy.max_response=19"):
        policy.encoder.fit(prompt, response, 400, placed - 1, "sample 'x'")


def test_a_prompt_to_generate_from_keeps_its_picture_or_is_refused() -> None:
    policy = built("llava", max_length=70, max_response=20)
    prompt = asked(0, "Why? " * 10)
    row = policy.collator.generation_prompt(Prompt.of(prompt, album()[0]), 20)
    assert len(row) == 50 and row.dropped > 0
    assert sum(token in policy.encoder.media_ids for token in row.prompt) == row.prompt_media[0].tokens
    with pytest.raises(RecordError, match=r"the prompt to generate from takes 16 tokens for its 1 pictures and cannot be cut"):
        policy.collator.generation_prompt(Prompt.of(prompt, album()[0]), 55)
    with pytest.raises(RecordError, match="came without its media source"):
        policy.collator.generation_prompt(prompt, 20)


@pytest.mark.parametrize("shown", [(), (0,)], ids=["text alone", "beside a picture"])
@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("llava", "<image>"), ("qwen2_vl", "<|image_pad|>"), ("mistral3", "[IMG]"), ("paligemma", "<image>"),
        ("gemma3", "<start_of_image>"), ("gemma3", "<image_soft_token>"), ("aya_vision", "<|IMG_PATCH|>"),
        ("ovis2", "<IMG_ATOM>"),
    ],
)  # fmt: skip
def test_a_placeholder_spelt_out_in_a_prompt_is_refused(name: str, token: str, shown: tuple[int, ...]) -> None:
    """The processors' own ways are an error about missing pictures, or features at words."""
    policy = built(name)
    with pytest.raises(RecordError, match="its text spells the placeholder out; remove it"):
        policy.collate([sample(asked(*shown, f"What does {token} mean?"), "Nothing.")])


@pytest.mark.parametrize(
    ("name", "token"), [("llava", "<image>"), ("qwen3_vl", "<|image_pad|>"), ("gemma3", "<image_soft_token>")]
)
def test_a_placeholder_spelt_out_in_a_response_is_ordinary_text(name: str, token: str) -> None:
    policy = built(name)
    said = f"Write {token} there."
    batch = policy.collate([sample(asked(0, "How?"), said)])
    scored = batch.tensors["targets"][0].tolist()
    assert scored == [*spelt(policy, said), *policy.encoder.end_ids] and not set(scored) & policy.encoder.media_ids
    assert policy.tokenizer.decode(scored[:-1]) == said
    assert torch.isfinite(policy(batch).log_probs).all()
