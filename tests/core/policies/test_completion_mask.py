"""What becomes a prompt token, what becomes a decision, and what the length limits take."""

from __future__ import annotations

import pytest

from polyalign.errors import ConfigError, RecordError
from polyalign.policies.completion_mask import Piece, PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.tiny_language import TEMPLATE, byte_tokenizer, tiny_llama
from polyalign.policies.token_collator import TokenCollator
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, MediaRef, Message, TextPart


def talk(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, parts=text) for role, text in turns)  # type: ignore[arg-type]


def text(value: str) -> tuple[TextPart, ...]:
    return (TextPart(text=value),)


@pytest.fixture(scope="module")
def encoder() -> PromptResponseEncoder:
    return PromptResponseEncoder(byte_tokenizer())


CONVERSATION = talk(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "A fruit?"))


def test_a_conversation_is_rendered_as_the_template_does_and_only_the_last_answer_is_scored(
    encoder: PromptResponseEncoder,
) -> None:
    """Prompt + response must be the tokenizer's own rendering of the whole conversation, up to the answer's end token; the
    assistant's earlier turn belongs to the prompt."""
    turns = [{"role": m.role, "content": m.parts[0].text} for m in CONVERSATION]  # type: ignore[union-attr]
    whole = encoder.tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "Plum."}], tokenize=False)
    prompt, response = encoder.prompt_ids(CONVERSATION), encoder.response_ids(text("Plum."))
    assert encoder.tokenizer.decode(prompt + response) == whole.removesuffix("\n")
    assert encoder.tokenizer.decode(response) == "Plum.<|end|>"
    collated = TokenCollator(encoder, TokensConfig())([Sample("a", CONVERSATION, text("Plum."), "a")])
    ids, mask = collated.tensors["input_ids"][0], collated.mask[0, 0]
    assert ids[collated.tensors["predictors"][0][mask] + 1].tolist() == list(response)
    assert encoder.tokenizer.decode(ids[: len(prompt)]).count("<|end|>") == 4


def test_a_prompt_that_ends_with_the_assistant_is_continued(encoder: PromptResponseEncoder) -> None:
    prompt = talk(("user", "Count."), ("assistant", "One, two,"))
    assert encoder.tokenizer.decode(encoder.prompt_ids(prompt)).endswith("<|start|>assistant\nOne, two,")


def test_without_a_template_the_response_follows_the_prompt_at_once() -> None:
    for encoder in (PromptResponseEncoder(byte_tokenizer(None)), PromptResponseEncoder(byte_tokenizer(), "none")):
        ids = encoder.prompt_ids(talk(("system", "Facts."), ("user", "Sky: "))) + encoder.response_ids(text("blue"))
        assert encoder.tokenizer.decode(ids) == "Facts.\nSky: blue<|end|>"
        assert encoder.prompt_ids(talk(("user", ""))) == (encoder.tokenizer.eos_token_id,)


def test_a_start_token_that_the_tokenizer_adds_is_kept_and_an_end_token_it_adds_is_not() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(None)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|start|>", "<|end|>")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=list(ids.items())
    )
    encoder = PromptResponseEncoder(tokenizer)
    decoded = tokenizer.decode(encoder.prompt_ids(talk(("user", "Sky:"))) + encoder.response_ids(text(" blue")))
    assert decoded == "<|start|>Sky: blue<|end|>"


@pytest.mark.parametrize(
    ("turn_end", "expected"),
    [
        ("<|end|>\n", "<|end|>"),  # text after the end token is not scored: generation stops there
        ("\n<|start|>", "\n<|start|>"),  # a special token other than eos closes the turn
        ("\n", "<|end|>"),  # a template that closes nothing gets the end-of-text token
        ("", "<|end|>"),
    ],
)
def test_the_end_of_turn_is_read_off_the_template(turn_end: str, expected: str) -> None:
    encoder = PromptResponseEncoder(byte_tokenizer(TEMPLATE.replace("<|end|>\n", turn_end)))
    assert encoder.tokenizer.decode(encoder.end_ids) == expected


def test_special_tokens_spelt_in_a_response_are_ordinary_text(encoder: PromptResponseEncoder) -> None:
    ids = encoder.response_ids(text("a <|end|> b"))
    assert ids.count(encoder.tokenizer.eos_token_id) == 1
    assert encoder.tokenizer.decode(ids) == "a <|end|> b<|end|>"


def test_long_prompts_lose_their_oldest_tokens_and_the_response_stays_whole(encoder: PromptResponseEncoder) -> None:
    encoded = encoder.fit(Piece(tuple(range(20))), Piece(tuple(range(100, 106))), max_length=10, max_response=8, whose="it")
    assert encoded.prompt == (16, 17, 18, 19)
    assert encoded.response == tuple(range(100, 106))
    assert (encoded.dropped, encoded.cut, len(encoded)) == (16, 0, 10)


def test_a_cut_response_has_no_end_token(encoder: PromptResponseEncoder) -> None:
    """The text goes on where it was cut; scoring an end token there would teach the model to stop in mid-sentence."""
    collator = TokenCollator(encoder, TokensConfig(max_length=40, max_response=5))
    batch = collator([Sample("a", talk(("user", "Speak")), text("abcdefgh"), "a")])
    assert encoder.tokenizer.decode(batch.tensors["targets"][0]) == "abcde"
    assert batch.tensors["truncated"].tolist() == [[0, 4]]  # f, g, h and the end token


def test_what_truncation_takes_is_counted_and_said_once_before_training(
    encoder: PromptResponseEncoder, caplog: pytest.LogCaptureFixture, tmp_path: object
) -> None:
    policy = TokenPolicy(tiny_llama(258), encoder, TokensConfig(max_length=40, max_response=10))
    short, long = talk(("user", "Hi")), talk(("user", "Hi" * 20))
    samples = [
        Sample("a", short, text("ok"), "a"),
        Sample("b", long, text("a long answer"), "b"),
        Sample("c", long, text("ok"), "c"),
    ]
    prompt_tokens = len(encoder.prompt_ids(long))
    lost = policy.collator.truncation(samples)
    assert (lost.samples, lost.prompts, lost.responses, lost.response_tokens) == (3, 2, 1, 4)
    assert lost.prompt_tokens == (prompt_tokens + 10 - 40) + (prompt_tokens + 3 - 40)
    with caplog.at_level("WARNING"):
        policy.prepare(samples, tmp_path)  # type: ignore[arg-type]
    assert "2 of 3 samples are longer than policy.max_length=40" in caplog.text
    assert "1 of 3 responses are longer than policy.max_response=10" in caplog.text
    caplog.clear()
    policy.prepare(samples[:1], tmp_path)  # type: ignore[arg-type]
    assert caplog.text == ""


def test_media_and_refused_roles_are_errors_that_name_the_way_out(encoder: PromptResponseEncoder) -> None:
    picture = MediaPart(media=MediaRef(modality="image", sha256="0" * 64, mime="image/png", length=1))
    with pytest.raises(RecordError, match="response holds a image part"):
        encoder.response_ids((picture,))
    strict = PromptResponseEncoder(
        byte_tokenizer("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE)
    )
    with pytest.raises(RecordError, match="chat_template: none"):
        strict.prompt_ids(CONVERSATION)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos_token"):
        PromptResponseEncoder(tokenizer)
