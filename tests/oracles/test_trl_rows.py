"""The prompt that chosen and rejected share is the one that TRL 1.16 extracts."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polyalign.records.trl import from_trl

words = st.lists(st.sampled_from(["sky", "is", " ", "blue", "b", "."]), min_size=1, max_size=6).map("".join)


@settings(max_examples=100, deadline=None)
@given(words, words, words)
def test_implicit_prompt_of_strings(shared: str, chosen: str, rejected: str) -> None:
    """Unless one text is all of the other: there TRL leaves the last shared character to the answers, and we do not."""
    data_utils = pytest.importorskip("trl.data_utils")
    row = {"chosen": shared + chosen, "rejected": shared + rejected}
    assume(not row["chosen"].startswith(row["rejected"]) and not row["rejected"].startswith(row["chosen"]))
    theirs = data_utils.extract_prompt(dict(row))
    assume(theirs["prompt"].strip())
    ours = from_trl(row, "x")
    assert ours.prompt[0].parts[0].text == theirs["prompt"]
    assert [candidate.parts[0].text for candidate in ours.candidates] == [theirs["chosen"], theirs["rejected"]]


def test_implicit_prompt_of_messages() -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    shared = [
        {"role": role, "content": text} for role, text in (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    row = {side: [*shared, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    theirs = data_utils.extract_prompt(row)
    ours = from_trl(row, "x")
    assert [(message.role, message.parts[0].text) for message in ours.prompt] == [
        (m["role"], m["content"]) for m in theirs["prompt"]
    ]
    answers = [candidate.parts[0].text for candidate in ours.candidates]
    assert answers == [theirs["chosen"][0]["content"], theirs["rejected"][0]["content"]]
