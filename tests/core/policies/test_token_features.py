"""Heads read real tokens: the published bug of scoring the shorter response of a pair at its padding cannot happen."""

from __future__ import annotations

import pytest
import torch

from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Sample
from polyalign.records.schema import Message, TextPart

FEATURES = frozenset({"hidden", "prompt_hidden", "states"})
TEXTS = ("yes", "a far longer answer\n\nof two lines\n", "no\nwell")


def policy(rows: str) -> TokenPolicy:
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return TokenPolicy(model, PromptResponseEncoder(tokenizer), TokensConfig(max_length=128, max_response=64, rows=rows)).eval()


def samples() -> list[Sample]:
    prompt = (Message(role="user", parts=(TextPart(text="Well?"),)),)
    return [Sample(text, prompt, (TextPart(text=text),), "r") for text in TEXTS]


@pytest.mark.parametrize("rows", ["plain", "shared"])
def test_the_score_is_never_read_at_padding(rows: str):
    """Align-Anything's multimodal reward models read index -1 under right padding. Here each response, alone and without padding,
    has the same features as beside a longer one, to 1e-5; and they are transformers' own states at its last token."""
    model = policy(rows)
    with torch.no_grad():
        together = model(model.collate(samples()), FEATURES)
        for number, sample in enumerate(samples()):
            batch = model.collate([sample])
            alone = model(batch, FEATURES)
            own = model.model.model(input_ids=batch.tensors["input_ids"]).last_hidden_state[0]
            count = int(alone.mask.sum())
            torch.testing.assert_close(together.extras["hidden"][number], own[-1], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together.extras["prompt_hidden"][number], own[-count - 1], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(together.extras["states"][number, :count], own[-count:], atol=1e-5, rtol=1e-4)
            assert together.extras["states"][number, count:].eq(0).all()
            assert together.extras["step_ends"][number, :count].equal(alone.extras["step_ends"][0])


def test_lines_are_steps():
    model = policy("plain")
    with torch.no_grad():
        found = model(model.collate(samples()), FEATURES).extras["step_ends"]
    assert found.sum(1).tolist() == [1, 2, 2]
