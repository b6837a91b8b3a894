"""Rows in TRL's columns load as records and come back. tests/oracles compares the implicit prompt with TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys.records import plain

from polyalign.errors import RecordError
from polyalign.records import jsonl, parquet
from polyalign.records.convert import convert
from polyalign.records.dataset import ExampleDataset
from polyalign.records.jsonl import read_jsonl
from polyalign.records.parquet import read_parquet
from polyalign.records.schema import Candidate, Comparison, Message, Rating, Record
from polyalign.records.trl import RowError, from_trl, is_trl, to_trl
from polyalign.training.config import SourceConfig


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(prompt: Any, chosen: str, rejected: str) -> Record:
    return Record(
        id="x",
        prompt=prompt,
        candidates=[Candidate(parts=chosen), Candidate(parts=rejected)],
        feedback=[Comparison(ranking=((0,), (1,)))],
    )


SYSTEM = {"role": "system", "content": "be kind"}
SAID = (Message(role="system", parts="be kind"), Message(role="user", parts="hi"))


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"prompt": "hi", "chosen": "hello", "rejected": "go"}, pair("hi", "hello", "go")),
        (
            {"prompt": [SYSTEM, user("hi")], "chosen": [assistant("hello")], "rejected": [assistant("go")]},
            pair(SAID, "hello", "go"),
        ),
        (
            {"chosen": [SYSTEM, user("hi"), assistant("hello")], "rejected": [SYSTEM, user("hi"), assistant("go")]},
            pair(SAID, "hello", "go"),
        ),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, pair("The sky is", " blue.", " green.")),
        # the prompt repeated inside both answers
        (
            {"prompt": [user("hi")], "chosen": [user("hi"), assistant("a")], "rejected": [user("hi"), assistant("b")]},
            pair("hi", "a", "b"),
        ),
        (
            {"prompt": "hi", "completion": "hello", "label": True},
            Record(id="x", prompt="hi", candidates=[{"parts": "hello"}], feedback=[Rating(candidate=0, value=1.0)]),
        ),
        (
            {"prompt": [user("hi")], "completion": [assistant("go")], "label": False},
            Record(id="x", prompt="hi", candidates=[{"parts": "go"}], feedback=[Rating(candidate=0, value=0.0)]),
        ),
        ({"prompt": "hi", "completion": "hello"}, Record(id="x", prompt="hi", candidates=[{"parts": "hello"}])),
        ({"messages": [SYSTEM, user("hi"), assistant("hello")]}, Record(id="x", prompt=SAID, candidates=[{"parts": "hello"}])),
        (
            {"messages": [user("hi"), {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]},
            Record(id="x", prompt="hi", candidates=[{"parts": "hello"}]),
        ),
        ({"id": "named", "prompt": "p", "completion": "c", "source": "web", "images": None}, plain("named", "p", "c")),
    ],
)
def test_each_layout_gives_the_record_written_by_hand(row: dict[str, Any], expected: Record) -> None:
    assert is_trl(row)
    assert from_trl(row, "x") == expected


@pytest.mark.parametrize(
    "row, field, says",
    [
        ({"prompt": "p", "chosen": "a"}, "record", "'rejected' is missing; the row has chosen, prompt"),
        ({"completion": "a"}, "record", "'prompt' is missing; the row has completion"),
        ({"chosen": "abc", "rejected": "xyz"}, "record", "share no beginning"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}, "record", "share no first message"),
        ({"prompt": "p", "chosen": "a", "rejected": [assistant("b")]}, "rejected", "differ in form"),
        ({"prompt": "p", "completion": "a", "label": "yes"}, "label", "expected true or false; found 'yes'"),
        ({"prompt": "p", "chosen": [assistant("a"), user("b")], "rejected": [assistant("c")]}, "chosen", "found assistant, user"),
        ({"messages": [user("a")]}, "messages", "found 1 message"),
        ({"messages": [user("a"), user("b")]}, "messages[1]", "expected one assistant message after the prompt; found user"),
        (
            {"messages": [{"from": "human", "value": "x"}, assistant("a")]},
            "messages[0]",
            "expected {'role': ..., 'content': ...}",
        ),
        ({"messages": [{"role": "human", "content": "x"}, assistant("a")]}, "messages[0].role", "'human' is not one of system"),
        (
            {"messages": [user("a"), {"role": "assistant", "content": "", "tool_calls": [1]}]},
            "messages[1].tool_calls",
            "tool calls",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, assistant("a")]},
            "messages[0].content[0]",
            "only text is read",
        ),
        ({"messages": [{"role": "user", "content": 3}, assistant("a")]}, "messages[0].content", "expected text; found 3"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "image": {"bytes": b""}}, "image", "media in TRL columns are not read"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "tools": "[]"}, "tools", "tool definitions are not read"),
        ({"prompt": 3, "completion": "a"}, "prompt", "expected a string or a list of messages; found 3"),
    ],
)
def test_what_cannot_be_read_faithfully_is_refused_with_its_place(row: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(RowError) as caught:
        from_trl(row, "x")
    assert caught.value.defect.field == field
    assert says in caught.value.defect.reason


ROWS = [
    {"prompt": "hi", "chosen": "hello", "rejected": "go"},
    {"prompt": "why", "chosen": "because", "rejected": "so"},
]


@pytest.mark.parametrize("module, suffix", [(jsonl, ".jsonl"), (parquet, ".parquet")])
def test_rows_of_both_formats_are_read_named_by_line_and_trained_on(module: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"train{suffix}"
    module.write_rows(path, ROWS)
    read = read_jsonl(path) if suffix == ".jsonl" else read_parquet(path)
    assert [(number, record.id, record.prompt[0].parts[0].text) for number, record in read] == [
        (1, "train-1", "hi"),
        (2, "train-2", "why"),
    ]
    assert len(ExampleDataset([SourceConfig(path=str(path))], "pairs")) == 2


def test_parquet_written_by_datasets_with_message_columns_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"chosen": [user(f"q{n}"), assistant("a")], "rejected": [user(f"q{n}"), assistant("b")], "score": n} for n in range(3)
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    assert [record.prompt[0].parts[0].text for _, record in read_parquet(tmp_path / "train.parquet")] == ["q0", "q1", "q2"]


def test_records_become_conversational_rows_and_come_back(tmp_path: Path) -> None:
    record = plain("r", "p", *"abc", feedback=(Comparison(ranking=(0, [1, 2])),))
    assert list(to_trl(record)) == [
        {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("c")]},
    ]
    assert [row["label"] for row in to_trl(record, "unpaired")] == [True, False, False]
    assert list(to_trl(record, "sft")) == [{"prompt": [user("p")], "completion": [assistant("a")]}]
    jsonl.write_jsonl(tmp_path / "train.jsonl", [record])
    convert(tmp_path, tmp_path / "out.parquet", trl="pairs")
    assert [[text.parts[0].text for text in read.candidates] for _, read in read_parquet(tmp_path / "out.parquet")] == [
        ["a", "b"],
        ["a", "c"],
    ]


def test_media_cannot_be_written_to_text_columns(tmp_path: Path) -> None:
    from polyalign.records.store import MediaStore

    ref = MediaStore(tmp_path).add(b"x", "scent", "scent/raw")
    record = Record(id="r", prompt="p", candidates=[{"parts": [{"type": "media", "media": ref}]}])
    jsonl.write_jsonl(tmp_path / "train.jsonl", [record])
    with pytest.raises(RecordError, match=r"record 'r': TRL columns hold text only; the record holds a medium \(scent\)"):
        convert(tmp_path, tmp_path / "out", trl="sft")
    assert not list((tmp_path / "out").glob("*"))


def test_an_answer_that_is_all_of_the_other_one_leaves_an_empty_answer() -> None:
    """TRL 1.16 would cut one character earlier here: it never looks past the shorter text's last character."""
    record = from_trl({"chosen": "stop", "rejected": "stop it"}, "x")
    assert record == pair("stop", "", " it")
