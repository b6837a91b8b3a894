"""A policy's own answers written into records, by a policy that answers with what it was asked and how often."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from toys.records import plain

from polyalign.errors import TrainingError
from polyalign.evaluation.self_samples import asked, records_in, without_stale, write
from polyalign.records.jsonl import read_jsonl, write_jsonl
from polyalign.records.samples import Prompt
from polyalign.records.schema import Comparison, MediaPart, Message, Rating, Record, Refinement, TextPart, text_of
from polyalign.records.store import MediaStore, MemoryMedia
from polyalign.records.views import VIEWS
from polyalign.training.config import SourceConfig


class Parrot:
    """Answers "seed/number: prompt". ``outputs`` text, or a picture of one colour per answer."""

    def __init__(self, outputs: str = "text") -> None:
        self.outputs, self.calls = frozenset({outputs}), []

    def eval(self) -> None:
        pass

    def generate(self, prompts, *, samples_per_prompt: int, seed: int, **decoding):
        self.calls.append((len(prompts), samples_per_prompt, decoding))
        for prompt in prompts:
            for number in range(samples_per_prompt):
                said = f"{seed}/{number}: {text_of(prompt[-1].parts)}"
                yield SimpleNamespace(output=said if self.outputs == {"text"} else picture(number), parts=())


def picture(number: int):
    from PIL import Image

    return Image.new("RGB", (4, 4), (40 * number, 0, 0))


def source(folder: Path, *records: Record) -> list[tuple]:
    write_jsonl(folder / "train.jsonl", records)
    return list(records_in([SourceConfig(path=str(folder))]))


def read(path: Path) -> list[Record]:
    return [record for _, record in read_jsonl(path)]


def test_answers_become_candidates_and_d2o_finds_them(tmp_path: Path) -> None:
    records = (plain("a", "p", "good", "bad", feedback=(Comparison(ranking=(0, 1)),)), plain("b", "q", "x"))
    policy, target = Parrot(), tmp_path / "out" / "self.jsonl"
    found = source(tmp_path, *records)
    assert write(policy, found, target, count=3, seed=7, maker="run step 4", decoding={"temperature": 0.5}) == 2
    first, second = read(target)
    assert [text_of(c.parts) for c in first.candidates] == ["good", "bad", "7/0: p", "7/1: p", "7/2: p"]
    assert {c.producer for c in first.candidates[2:]} == {"self:run step 4"}
    assert first.feedback == records[0].feedback and len(second.candidates) == 4
    (example,) = VIEWS["self_samples"](first, None)
    assert [sample.role for sample in example.samples] == ["response", *["self_sample"] * 3]
    assert policy.calls == [(2, 3, {"temperature": 0.5})]


def test_a_refresh_replaces_what_nobody_judged(tmp_path: Path) -> None:
    """Own answers 1 and 2; 2 was rated. Answering again drops 1 and keeps 2, its rating and the refinement of it in place."""
    listed = [
        {"parts": "given"},
        {"parts": "old", "producer": "self"},
        {"parts": "rated", "producer": "self:x"},
        {"parts": "better"},
    ]
    feedback = (
        Rating(candidate=2, value=0.9),
        Comparison(ranking=((3,), (2, 0))),
        Refinement(before=2, after=3),
    )
    record = Record(id="a", prompt="p", candidates=listed, feedback=feedback)
    kept = without_stale(record)
    assert [text_of(c.parts) for c in kept.candidates] == ["given", "rated", "better"]
    assert kept.feedback == (Rating(candidate=1, value=0.9), Comparison(ranking=((2,), (1, 0))), Refinement(before=1, after=2))
    write(Parrot(), source(tmp_path, record), tmp_path / "out" / "self.jsonl", count=1)
    assert [text_of(c.parts) for c in read(tmp_path / "out" / "self.jsonl")[0].candidates] == [
        "given",
        "rated",
        "better",
        "0/0: p",
    ]


def test_prefixes_take_turns_and_are_not_recorded(tmp_path: Path) -> None:
    write(Parrot(), source(tmp_path, plain("a", "p", "x")), tmp_path / "o.jsonl", count=3, prefixes=["Kindly: ", "Briefly: "])
    (record,) = read(tmp_path / "o.jsonl")
    answers = [text_of(candidate.parts) for candidate in record.candidates[1:]]
    assert answers == ["0/0: Kindly: p", "0/1: Kindly: p", "0/0: Briefly: p"]
    assert text_of(record.prompt[0].parts) == "p"


def test_each_distinct_prompt_of_a_record_is_answered_under_itself(tmp_path: Path) -> None:
    other = [{"role": "user", "parts": "q"}]
    record = Record(id="g", prompt="p", candidates=[{"parts": "x"}, {"parts": "y", "prompt": other}, {"parts": "z"}])
    write(Parrot(), source(tmp_path, record), tmp_path / "o.jsonl", count=1)
    (written,) = read(tmp_path / "o.jsonl")
    assert [(text_of(written.prompt_of(at)[0].parts), text_of(written.candidates[at].parts)) for at in (3, 4)] == [
        ("p", "0/0: p"),
        ("q", "0/0: q"),
    ]
    assert written.candidates[3].prompt is None


def test_pictures_go_into_the_store_beside_the_file_with_those_of_the_prompt(tmp_path: Path) -> None:
    pytest.importorskip("polyalign_image")

    media = MemoryMedia()
    from io import BytesIO

    buffer = BytesIO()
    picture(6).save(buffer, "PNG")
    shown = MediaPart(media=media.add(buffer.getvalue(), "image", "image/png"))
    prompt = Prompt.of((Message(role="user", parts=(shown, TextPart(text="another"))),), media)
    target = tmp_path / "out" / "self.jsonl"
    assert write(Parrot("image"), asked([prompt]), target, count=2) == 1
    (record,) = read(target)
    store = MediaStore(target.parent)
    assert len({store.path(ref) for ref in record.media()}) == 3
    assert all(ref.uri is None for ref in record.media())


def test_nothing_is_overwritten_and_only_json_lines_are_written(tmp_path: Path) -> None:
    found = source(tmp_path, plain("a", "p", "x"))
    with pytest.raises(TrainingError, match="is there already"):
        write(Parrot(), found, tmp_path / "train.jsonl", count=1)
    with pytest.raises(TrainingError, match="does not end in .jsonl"):
        write(Parrot(), found, tmp_path / "o.parquet", count=1)
