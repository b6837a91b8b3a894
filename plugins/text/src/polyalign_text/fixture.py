"""A tiny random language model with records that it can read: what the cells test trains on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

from polyalign.policies.base import Policy
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.schema import Candidate, Comparison, Message, Record, TextPart
from polyalign_text.config import ControlAdaptersConfig
from polyalign_text.control_adapters import ControlAdaptersPolicy, ControlEncoder
from polyalign_text.policy import TextPolicy


def build(value_head: bool = False) -> Policy:
    """Return a fresh tiny policy with the same weights each time."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = TokensConfig(max_length=128, max_response=48)
    return TextPolicy(model, PromptResponseEncoder(tokenizer), config, value_head=value_head)


def build_controlled(**settings: Any) -> ControlAdaptersPolicy:
    """Return a fresh tiny policy with soft prompts, in the joint stage unless told otherwise."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = ControlAdaptersConfig(**{"base": "tiny", "length": 4, "max_length": 128, "max_response": 48, **settings})
    return ControlAdaptersPolicy(model, ControlEncoder(tokenizer, config), config)


def _user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", parts=text),)  # type: ignore[arg-type]


def records() -> list[Record]:
    """Return four pairs under one prompt each, then two grids of two prompts x two answers."""
    pairs = [
        ("Name a red fruit.", "Cherry.", "Lime."),
        ("Say hello in lower case.", "hello", "HELLO"),
        ("Two plus three?", "Five.", "It is about nine."),
        ("Name a sea animal.", "Octopus.", "Goat."),
    ]
    grids = [
        ("Name a bird.", "An owl.", "Name a tree.", "An oak."),
        ("Say yes.", "Yes.", "Say no.", "No."),
    ]
    found = [
        Record(
            id=f"pair-{number}",
            prompt=_user(prompt),
            candidates=(Candidate(parts=chosen), Candidate(parts=rejected)),  # type: ignore[arg-type]
            feedback=(Comparison(ranking=(0, 1)),),  # type: ignore[arg-type]
        )
        for number, (prompt, chosen, rejected) in enumerate(pairs)
    ]
    for number, (first, answer_first, second, answer_second) in enumerate(grids):
        answers = [(TextPart(text=answer),) for answer in (answer_first, answer_second)]
        found.append(grid(f"grid-{number}", [_user(first), _user(second)], answers))
    return found


def fixture() -> PolicyFixture:
    """Return what the cells test needs."""
    decoding = {"max_new_tokens": 8}
    return PolicyFixture(build=build, records=records(), with_values=partial(build, value_head=True), decoding=decoding)


def control_fixture() -> PolicyFixture:
    """Return what the cells test needs of control adapters."""
    return PolicyFixture(build=build_controlled, records=records(), decoding={"max_new_tokens": 8})
