"""Mixtures of data sets as training examples: filters, skipped records, keyed order, mismatched samples."""

from __future__ import annotations

import gc
import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from toys.records import grid, plain

from polyalign.errors import RecordError
from polyalign.records.dataset import ExampleDataset
from polyalign.records.jsonl import compact, write_jsonl
from polyalign.records.parquet import write_parquet
from polyalign.records.schema import Comparison, MediaPart, Record, text_of
from polyalign.records.store import MediaStore
from polyalign.training.config import SourceConfig

BETTER = (Comparison(ranking=(0, 1)),)


def pair(number: int, **fields: object) -> Record:
    return plain(f"r{number}", f"prompt {number}", f"good {number}", f"bad {number}", feedback=BETTER, **fields)


def source(folder: Path, records: list[Record], split: str = "train", **fields: object) -> SourceConfig:
    write_jsonl(folder / f"{split}.jsonl", records)
    return SourceConfig(path=str(folder), split=split, **fields)


def ids(dataset: ExampleDataset) -> list[str]:
    return [dataset[index].record_id for index in range(len(dataset))]


def test_examples_come_in_file_order_and_records_may_give_several(tmp_path: Path) -> None:
    three = plain("many", "p", *"abc", feedback=(Comparison(ranking=(0, 1, 2)),))
    none = plain("none", "p", "a", "b", feedback=(Comparison(ranking=((0, 1),)),))
    dataset = ExampleDataset([source(tmp_path, [pair(0), none, three, pair(1)])], "pairs")
    assert ids(dataset) == ["r0", "many", "many", "many", "r1"]
    assert [text_of(sample.response) for sample in dataset[2].samples] == ["a", "c"]
    assert dataset[-1] == dataset[4]
    with pytest.raises(IndexError):
        dataset[5]


def test_split_limit_tags_and_aspect_choose_the_records(tmp_path: Path) -> None:
    records = [pair(n, tags=("even",) if n % 2 == 0 else ()) for n in range(8)]
    config = source(tmp_path, records)
    source(tmp_path, [pair(9)], split="test")
    assert ids(ExampleDataset([SourceConfig(path=str(tmp_path), split="test")], "pairs")) == ["r9"]
    assert ids(ExampleDataset([config.model_copy(update={"limit": 5})], "pairs", tags=["even"])) == ["r0", "r2", "r4"]
    with pytest.raises(RecordError, match="no example in the view 'pairs' with aspect 'taste'"):
        ExampleDataset([config], "pairs", aspect="taste")


def test_a_missing_split_names_the_nearest_and_all_there_are(tmp_path: Path) -> None:
    config = source(tmp_path, [pair(0)])
    with pytest.raises(RecordError, match=r"has no split 'trian'. Did you mean 'train'\? It has: train"):
        ExampleDataset([config.model_copy(update={"split": "trian"})], "pairs")


def test_one_split_in_two_formats_is_refused_and_shards_are_joined(tmp_path: Path) -> None:
    config = source(tmp_path, [pair(0)])
    write_parquet(tmp_path / "train.parquet", [pair(0)])
    with pytest.raises(RecordError, match=r"given twice: train.jsonl, train.parquet"):
        ExampleDataset([config], "pairs")
    shards = tmp_path / "shards" / "data"
    write_parquet(shards / "train-00000-of-00002.parquet", [pair(0), pair(1)])
    write_parquet(shards / "train-00001-of-00002.parquet", [pair(2)])
    assert ids(ExampleDataset([SourceConfig(path=str(tmp_path / "shards"))], "pairs")) == ["r0", "r1", "r2"]


def test_references_are_resolved_by_the_given_function(tmp_path: Path) -> None:
    source(tmp_path / "toy", [pair(0)])
    dataset = ExampleDataset(
        [SourceConfig(path="dataset:toy")], "pairs", resolve=lambda name: tmp_path / name.removeprefix("dataset:")
    )
    assert ids(dataset) == ["r0"]


def broken(tmp_path: Path) -> SourceConfig:
    """Ten rows: the third has an unknown key, the sixth repeats an id, the ninth has media that are not there."""
    rows = [compact(pair(number)) for number in range(10)]
    rows[2]["promt"] = 1
    rows[5]["id"] = "r0"
    missing = {"modality": "scent", "sha256": "0" * 64, "mime": "scent/raw", "length": 1}
    rows[8]["candidates"][1]["parts"] = [{"type": "media", "media": missing}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(tmp_path))


def test_bad_records_are_skipped_counted_and_named(tmp_path: Path) -> None:
    dataset = ExampleDataset([broken(tmp_path)], "pairs", max_skipped=0.3)
    assert ids(dataset) == ["r0", "r1", "r3", "r4", "r6", "r7", "r9"]
    assert (dataset.report.read, dataset.report.skipped) == (10, 3)
    path = tmp_path / "train.jsonl"
    first, second, third = map(str, dataset.report.problems)
    assert first.startswith(f"{path}:3:promt: unknown key 'promt'. Did you mean 'prompt'?")
    assert second == f"{path}:6:id: id 'r0' was used before"
    assert third.startswith(f"{path}:9:candidates[1].parts[0].media.sha256: media/{'0' * 64}.raw does not exist")
    assert "10 records, 3 skipped as bad" in str(dataset.report)


def test_too_many_bad_records_stop_the_run_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"30.0% of the records are bad, more than data.max_skipped=0.29") as caught:
        ExampleDataset([broken(tmp_path)], "pairs", max_skipped=0.29)
    assert "train.jsonl:6:id: id 'r0' was used before" in str(caught.value)


def test_each_epoch_is_a_new_permutation_and_a_pure_function_of_seed_and_position(tmp_path: Path) -> None:
    dataset = ExampleDataset([source(tmp_path, [pair(n) for n in range(20)])], "pairs")
    stream = [dataset.position(p, seed=7) for p in range(60)]
    for epoch in range(3):
        assert sorted(stream[20 * epoch : 20 * (epoch + 1)]) == [(index, epoch) for index in range(20)]
    orders = [tuple(index for index, _ in stream[20 * epoch : 20 * (epoch + 1)]) for epoch in range(3)]
    assert len(set(orders)) == 3
    assert [index for index, _ in (dataset.position(p, seed=8) for p in range(20))] != list(orders[0])
    # any order of asking, a copy in a loader worker: the same answer
    copy = pickle.loads(pickle.dumps(dataset))
    assert [copy.position(p, seed=7) for p in reversed(range(60))] == stream[::-1]
    assert copy[13] == dataset[13]


def test_sources_take_turns_by_weight_whatever_their_size(tmp_path: Path) -> None:
    sources = [
        source(tmp_path / "small", [pair(n) for n in range(3)], weight=1),
        source(tmp_path / "large", [pair(n) for n in range(100, 150)], weight=2),
        source(tmp_path / "other", [pair(n) for n in range(200, 210)], weight=0.5),
    ]
    dataset = ExampleDataset(sources, "pairs")
    stream = [dataset.position(p, seed=0) for p in range(700)]
    owner = ["small" if index < 3 else "large" if index < 53 else "other" for index, _ in stream]
    assert Counter(owner) == {"small": 200, "large": 400, "other": 100}
    for p in range(0, 700, 7):  # and evenly: every window of seven has its 2, 4 and 1, give or take one
        window = Counter(owner[p : p + 7])
        assert abs(window["small"] - 2) <= 1 and abs(window["large"] - 4) <= 1 and window["other"] <= 2
    small = [(index, epoch) for index, epoch in stream if index < 3]
    assert [epoch for _, epoch in small[:9]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {index for index, _ in small[3:6]} == {0, 1, 2}


def test_ids_shared_by_two_sources_get_the_source_in_front(tmp_path: Path) -> None:
    first, second = source(tmp_path / "a", [pair(0)]), source(tmp_path / "b", [pair(0)])
    dataset = ExampleDataset([first, second], "pairs")
    assert ids(dataset) == ["a/r0", "b/r0"]
    assert [sample.draw_key for index in range(2) for sample in dataset[index].samples] == ["a/r0"] * 2 + ["b/r0"] * 2
    assert ids(ExampleDataset([first], "pairs")) == ["r0"]
    twice = ExampleDataset([first, first.model_copy(update={"weight": 2.0})], "pairs")
    assert ids(twice) == ["a.0/r0", "a.1/r0"]


def test_unpaired_examples_bring_a_mismatched_answer_of_another_prompt(tmp_path: Path) -> None:
    dataset = ExampleDataset([source(tmp_path, [pair(n) for n in range(6)])], "unpaired")
    assert len(dataset) == 12
    partners = set()
    for index in range(12):
        response, mismatch = dataset[index].samples
        assert dataset[index].labels == ((1, 0) if index % 2 == 0 else (-1, 0))
        assert (response.role, mismatch.role) == ("response", "mismatch")
        assert mismatch.prompt == response.prompt
        assert mismatch.draw_key == response.draw_key
        number = text_of(response.prompt[0].parts).split()[1]
        assert text_of(mismatch.response).split()[1] != number
        partners.add(text_of(mismatch.response))
    assert len(partners) > 4  # a keyed spread, not always the same partner
    assert pickle.loads(pickle.dumps(dataset))[5] == dataset[5]


def test_a_single_prompt_has_no_mismatch(tmp_path: Path) -> None:
    dataset = ExampleDataset([source(tmp_path, [pair(0)])], "unpaired")
    assert [len(dataset[index].samples) for index in range(2)] == [1, 1]


@pytest.mark.parametrize("embedded", [False, True])
def test_media_are_opened_through_the_sample(tmp_path: Path, embedded: bool) -> None:
    store = MediaStore(tmp_path)
    records = [
        Record(
            id=str(n),
            prompt=f"smell {n}",
            candidates=[
                {"parts": [MediaPart(media=store.add(b"%d%s" % (n, side), "scent", "scent/raw"))]} for side in (b"w", b"l")
            ],
            feedback=BETTER,
        )
        for n in range(4)
    ]
    if embedded:
        write_parquet(tmp_path / "elsewhere" / "train.parquet", records, store)
        config = SourceConfig(path=str(tmp_path / "elsewhere"))
    else:
        config = source(tmp_path, records)
    dataset = pickle.loads(pickle.dumps(ExampleDataset([config], "pairs")))
    better, worse = dataset[2].samples
    assert better.media.read(better.response[0].media) == b"2w"
    assert worse.media.path(worse.response[0].media).read_bytes() == b"2l"
    sample, mismatch = ExampleDataset([config], "unpaired")[0].samples
    assert mismatch.media.read(mismatch.response[0].media) != sample.media.read(sample.response[0].media)


def test_prompts_are_distinct_in_order_and_limited(tmp_path: Path) -> None:
    records = [pair(0), plain("again", "prompt 0", "c", "d", feedback=BETTER), pair(1), grid("g", [("x1", "y1"), ("x2", "y2")])]
    pairs = ExampleDataset([source(tmp_path, records)], "pairs")
    assert [text_of(prompt[0].parts) for prompt in pairs.prompts()] == ["prompt 0", "prompt 1"]
    assert len(pairs.prompts(1)) == 1
    grids = ExampleDataset([SourceConfig(path=str(tmp_path))], "grids")
    assert [text_of(prompt[0].parts) for prompt in grids.prompts()] == ["x1", "x2"]


def test_no_record_is_kept_in_memory(tmp_path: Path) -> None:
    dataset = ExampleDataset([source(tmp_path, [plain(f"held{n}", "p", "a", "b", feedback=BETTER) for n in range(50)])], "pairs")
    dataset[3], dataset.position(9, 0), dataset.prompts()
    gc.collect()
    assert [thing.id for thing in gc.get_objects() if isinstance(thing, Record) and thing.id.startswith("held")] == []


def test_reading_json_lines_imports_neither_torch_nor_pyarrow() -> None:
    code = (
        "import sys, polyalign.records.dataset, polyalign.records.views; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["False", "False"]
