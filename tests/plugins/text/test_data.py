"""The shipped data set: what it holds is what its rules say, and the builder makes exactly it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import pytest

from polyalign.assets import resolve_dataset
from polyalign.records.jsonl import read_jsonl
from polyalign.records.schema import Record, text_of
from polyalign.rewards.rules.sentences import read_constraints

ROOT = Path(__file__).parents[3]


def split(name: str) -> list[Record]:
    return [record for _, record in read_jsonl(resolve_dataset("dataset:text-constraints") / f"{name}.jsonl")]


@pytest.mark.parametrize(("name", "count"), [("train", 192), ("test", 48)])
def test_every_chosen_answer_keeps_its_instructions_and_every_rejected_one_breaks_one(name: str, count: int) -> None:
    records = split(name)
    assert len(records) == count
    for record in records:
        (comparison,) = record.feedback
        ((better,), (worse,)) = comparison.ranking  # type: ignore[union-attr]
        constraints = read_constraints(text_of(record.prompt[-1].parts))
        assert constraints, record.id
        assert all(constraint.holds(text_of(record.candidates[better].parts)) for constraint in constraints), record.id
        assert not all(constraint.holds(text_of(record.candidates[worse].parts)) for constraint in constraints), record.id


def test_no_topic_is_in_both_splits_and_neither_length_nor_position_gives_the_answer_away() -> None:
    train, test = split("train"), split("test")
    topics = [{text_of(record.prompt[0].parts).split("?")[0] for record in records} for records in (train, test)]
    assert topics[0].isdisjoint(topics[1]) and len(topics[1]) == 8
    sizes, first = [0, 0], 0
    for record in train:
        ((better,), (worse,)) = record.feedback[0].ranking  # type: ignore[union-attr]
        sizes[0] += len(text_of(record.candidates[better].parts))
        sizes[1] += len(text_of(record.candidates[worse].parts))
        first += better == 0
    assert abs(sizes[0] / sizes[1] - 1) < 0.05
    assert first == len(train) / 2


def test_the_builder_makes_the_committed_files() -> None:
    path = ROOT / "tools" / "builders" / "text_constraints.py"
    spec = importlib.util.spec_from_file_location("text_constraints_builder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert module.build() == {"train": split("train"), "test": split("test")}


def test_the_card_names_the_files_by_their_hashes() -> None:
    folder = resolve_dataset("dataset:text-constraints")
    card = (folder / "CARD.md").read_text()
    for name in ("train", "test"):
        assert hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest() in card
