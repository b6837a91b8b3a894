"""What validation counts and remarks beyond problems: ties, duplicates, leaks between splits, biases, missing codecs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from toys.records import grid, plain
from toys.scent import Scent, scent

from polyalign.records.census import SplitCensus
from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Comparison, MediaPart, Record
from polyalign.records.store import MediaStore
from polyalign.records.validation import validate


def ranked(*ranking: object, **fields: object) -> Comparison:
    return Comparison(ranking=ranking, **fields)


def census(*records: Record) -> SplitCensus:
    counted = SplitCensus()
    for record in records:
        counted.add(record)
    return counted


def test_ties_incomparable_and_strict_pairs() -> None:
    """[0, 1, 2] tied > 3, with 4 aside: three tied pairs, three strict ones."""
    counted = census(plain("r", "p", *"abcde", feedback=(ranked([0, 1, 2], 3, incomparable=(4,)),)))
    assert (counted.ties, counted.strict_pairs, counted.incomparable) == (3, 3, 1)


def test_duplicate_contradicting_and_identical_pairs() -> None:
    first = plain("1", "p", "a", "b", feedback=(ranked(0, 1, annotator="x"), ranked(0, 1, annotator="y")))
    again = plain("2", "p", "b", "a", feedback=(ranked(1, 0),))  # a over b once more
    against = plain("3", "p", "a", "b", feedback=(ranked(1, 0),))
    elsewhere = plain("4", "other", "a", "b", feedback=(ranked(1, 0),))
    aspect = plain("5", "p", "a", "b", feedback=(ranked(1, 0, aspect="taste"),))
    alike = plain("6", "p", "c", "c", feedback=(ranked(0, 1),))
    counted = census(first, again, against, elsewhere, aspect, alike)
    assert (counted.duplicate_pairs, counted.contradicting_pairs, counted.identical_pairs) == (1, 1, 1)
    assert counted.strict_pairs == 7


def test_length_and_position_bias_by_hand() -> None:
    """Chosen minus rejected lengths: 4-1, 2-5, 3-3: mean 0; one of three longer; chosen first in two of three."""
    counted = census(
        plain("1", "p", "aaaa", "b", feedback=(ranked(0, 1),)),
        plain("2", "q", "aaaaa", "bb", feedback=(ranked(1, 0),)),
        plain("3", "r", "aaa", "bbb", feedback=(ranked(0, 1),)),
        grid("4", [("x", "y"), ("xx", "y")], ranked(1, 0)),  # two prompts, one answer: says nothing about either bias
    )
    bias = counted.bias
    assert (bias.mean_length_difference, bias.share_longer, bias.share_first) == (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert census(plain("1", "p", "a")).bias.share_first is None


def test_prompts_in_training_and_held_out_splits_are_counted_whatever_their_shape(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [plain("1", "shared", "a"), plain("2", "own", "a")])
    write_jsonl(tmp_path / "grids.train.jsonl", [grid("3", [("shared", "a"), ("another", "b")])])
    write_jsonl(tmp_path / "test.jsonl", [plain("4", "shared", "z"), plain("5", "fresh", "z")])
    write_jsonl(tmp_path / "grids.test.jsonl", [grid("6", [("fresh", "a"), ("new", "b")])])
    findings = validate(tmp_path, modalities={})
    assert findings.problems == []
    assert findings.shared_prompts == {("train", "test"): 1, ("grids.train", "test"): 1}
    assert {name: counted.records for name, counted in findings.splits.items()} == {
        "grids.test": 1,
        "grids.train": 1,
        "test": 2,
        "train": 2,
    }


def test_each_medium_is_decoded_once_over_all_splits_and_unused_files_are_noted(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    used = store.add(scent(b"rose"), "scent", "scent/raw")
    store.add(scent(b"never named"), "scent", "scent/raw")
    record = Record(id="r", prompt="p", candidates=[{"parts": [MediaPart(media=used)]}])
    write_jsonl(tmp_path / "train.jsonl", [record, record.model_copy(update={"id": "s"})])
    write_jsonl(tmp_path / "test.jsonl", [record])
    calls = Counter()

    class Counting(Scent):
        def decode(self, data: bytes) -> bytes:
            calls[data] += 1
            return super().decode(data)

    findings = validate(tmp_path, modalities={"scent": Counting})
    assert calls == {scent(b"rose"): 1}
    assert findings.decoded == {"scent": 1}
    assert findings.notes == ["1 file(s) in media/ are named by no record"]
    assert findings.problems == []


def test_a_modality_without_codec_is_a_remark_and_its_media_are_still_hashed(tmp_path: Path) -> None:
    ref = MediaStore(tmp_path).add(b"anything", "touch", "touch/raw")
    record = Record(id="r", prompt="p", candidates=[{"parts": [MediaPart(media=ref)]}])
    write_jsonl(tmp_path / "train.jsonl", [record])
    findings = validate(tmp_path / "train.jsonl", modalities={"scent": Scent})
    assert findings.problems == []
    assert findings.notes == [
        "1 medium(s) of modality 'touch' were hashed but not decoded: "
        "no installed plugin decodes 'touch' (see: polyalign plugins)"
    ]
    (tmp_path / "media" / f"{ref.sha256}.raw").write_bytes(b"thinganY")
    assert validate(tmp_path / "train.jsonl", modalities={}).kinds == {"wrong hash": 1}
