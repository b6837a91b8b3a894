"""A record written and read back is the same record: JSON, JSON Lines, Parquet, and Parquet through Hugging Face datasets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys.records import any_records, plain

from polyalign.errors import RecordError
from polyalign.records.jsonl import JsonlFile, compact, parse_line, read_jsonl, write_jsonl
from polyalign.records.parquet import ParquetFile, from_row, read_parquet, to_row, write_parquet
from polyalign.records.schema import Candidate, MediaPart, Record, TextPart
from polyalign.records.store import MediaStore, MemoryMedia

lists_of_records = st.lists(any_records(), max_size=3, unique_by=lambda record: record.id)
thorough = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@thorough
@given(any_records())
def test_json_round_trip_is_identity(record: Record) -> None:
    assert Record.model_validate_json(record.model_dump_json()) == record


@thorough
@given(any_records())
def test_compact_line_reads_back_as_the_same_record(record: Record) -> None:
    line = json.dumps(compact(record)).encode()
    assert parse_line(line, "unused") == (record, [])
    assert Record.model_validate_json(line) == record


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(records=lists_of_records)
def test_jsonl_file_round_trip_is_identity(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "train.jsonl"
    assert write_jsonl(path, records) == len(records)
    assert list(read_jsonl(path)) == list(enumerate(records, start=1))
    file = JsonlFile(path)
    assert [file.parse(row) for row in reversed(range(len(file)))] == [(record, []) for record in reversed(records)]


def with_media(store: MediaStore | MemoryMedia, count: int = 3) -> list[Record]:
    """Records that share one prompt medium and have one answer medium each."""
    shared = MediaPart(media=store.add(b"shared", "scent", "scent/raw"))
    return [
        Record(
            id=f"r{number}",
            prompt=[{"role": "user", "parts": [shared, {"type": "text", "text": "more like this"}]}],
            candidates=[
                Candidate(
                    parts=(MediaPart(media=store.add(b"own %d" % number, "scent", "scent/raw")),), conditions={"n": 1, "x": 1.0}
                ),
                Candidate(parts=(TextPart(text="no"),), conditions={"n": True, "x": "1"}),
            ],
            feedback=[{"type": "comparison", "ranking": [0, 1], "strength": 2}],
        )
        for number in range(count)
    ]


def test_parquet_embeds_media_and_gives_equal_records(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    records = with_media(store)
    path = tmp_path / "elsewhere" / "train.parquet"
    assert write_parquet(path, records, store) == 3
    assert [record for _, record in read_parquet(path)] == records
    file = pickle.loads(pickle.dumps(ParquetFile(path)))
    last = records[2].candidates[0].parts[0].media
    assert file.media.read(last) == b"own 2"
    assert file.media.path(last).read_bytes() == b"own 2"
    assert file.media.read(records[0].media()[0]) == b"shared"


def test_parquet_keeps_every_field_of_any_record(tmp_path: Path) -> None:
    @thorough
    @given(any_records())
    def check(record: Record) -> None:
        row = to_row(record.model_copy(), _AnyMedia())
        expected = Record.model_validate_json(json.dumps(_without_uri(record.model_dump(mode="json"))))
        path = tmp_path / "one.parquet"
        write_parquet(path, [record], _AnyMedia())
        assert [read for _, read in read_parquet(path)] == [expected]
        assert from_row(row, "unused") == (expected, [])

    check()


def test_huggingface_datasets_reads_the_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    store = MemoryMedia()
    records = with_media(store)
    write_parquet(tmp_path / "train.parquet", records, store)
    table = datasets.load_dataset(
        "parquet", data_files={"train": str(tmp_path / "train.parquet")}, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table["id"][:] == ["r0", "r1", "r2"]
    assert table[1]["candidates"][1]["parts"][0]["text"] == "no"
    assert sorted(item["bytes"] for item in table[2]["media"]) == [b"own 2", b"shared"]
    assert [from_row(row, "unused") for row in table] == [(record, []) for record in records]
    # and the way back: what datasets writes, we read
    table.to_parquet(str(tmp_path / "again.parquet"))
    assert [record for _, record in read_parquet(tmp_path / "again.parquet")] == records
    assert ParquetFile(tmp_path / "again.parquet").media.read(records[1].media()[1]) == b"own 1"


def test_parquet_cuts_row_groups_so_that_one_row_does_not_cost_the_whole_file(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    write_parquet(tmp_path / "a.parquet", (plain(str(n), "p", "a") for n in range(600)))
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [256, 256, 88]
    assert ParquetFile(tmp_path / "a.parquet").parse(599)[0] == plain("599", "p", "a")


@pytest.mark.parametrize("write, name", [(write_jsonl, "a.jsonl"), (write_parquet, "a.parquet")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(write, name: str, tmp_path: Path) -> None:
    write(tmp_path / name, [plain("old", "p", "a")])
    before = (tmp_path / name).read_bytes()

    def broken():
        yield plain("new", "p", "a")
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        write(tmp_path / name, broken())
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    assert write_parquet(tmp_path / "a.parquet", []) == 0
    assert write_jsonl(tmp_path / "a.jsonl", []) == 0
    assert len(ParquetFile(tmp_path / "a.parquet")) == len(JsonlFile(tmp_path / "a.jsonl")) == 0


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_read(tmp_path: Path) -> None:
    lines = [json.dumps(compact(plain(str(n), "p", "ä"))) for n in range(2)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{lines[0]}\r\n\r\n   \n{lines[1]}".encode())
    assert [(line, record.id) for line, record in read_jsonl(path)] == [(1, "0"), (4, "1")]
    file = JsonlFile(path)
    assert [(file.line(row), file.parse(row)[0].id) for row in range(len(file))] == [(1, "0"), (4, "1")]


def test_a_file_changed_after_indexing_is_an_error_not_garbage(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [plain("0", "p", "a"), plain("1", "p", "a")])
    file = JsonlFile(path)
    write_jsonl(path, [plain("longer", "p", "a"), plain("1", "p", "a")])
    with pytest.raises(RecordError, match="was changed"):
        file.parse(1)


class _AnyMedia:
    """Stands for a store that has every medium; the bytes are not looked at."""

    def read(self, ref) -> bytes:
        return b"?"


def _without_uri(value):
    if isinstance(value, dict):
        return {key: _without_uri(item) for key, item in value.items() if key != "uri"}
    return [_without_uri(item) for item in value] if isinstance(value, list) else value
