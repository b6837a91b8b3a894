"""What importers say of rows that they cannot read, and of media."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toys.imported import png, run_import, written
from typer.testing import CliRunner

from polyalign.cli.data import app
from polyalign.errors import RecordError
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import ImporterSpec
from polyalign.records.importing.run import import_data


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read: what the problem must name."""

    importer: str
    row: dict[str, Any]
    named: tuple[str, ...]


IMAGE = f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"
BROKEN = [
    Broken("trl", {"prompt": "p", "chosen": "a"}, ("'rejected' is missing", "chosen, prompt")),
    Broken("trl", {"prompt": "p", "completion": "c", "images": ["gone.png"]}, ("images[0]", "'gone.png'", "--media")),
    Broken("llama-factory", {"text": "x"}, ("missing: conversations", "found: text")),
    Broken(
        "llama-factory", {"conversations": [{"from": "human", "value": "<image>"}]}, ("conversations[0]", "more than the 0 image")
    ),
    Broken("llama-factory", {"conversations": [{"from": "robot", "value": "x"}]}, ("role 'robot'", "human, user, gpt")),
    Broken("ms-swift", {"query": "x"}, ("missing: messages", "found: query")),
    Broken("ms-swift", {"messages": [{"role": "user", "content": "x"}]}, ("messages", "an assistant's message")),
    Broken("hh-rlhf", {"chosen": "x"}, ("expected the columns chosen, rejected", "missing: rejected", "found: chosen")),
    Broken("hh-rlhf", {"chosen": "x", "rejected": "y"}, ("chosen", "begin 'Human:' and 'Assistant:'")),
    Broken("ultrafeedback", {"instruction": "x"}, ("missing: completions",)),
    Broken("oasst", {"message_id": "x", "text": "t"}, ("missing: parent_id, role, rank",)),
    Broken("align-anything", {"prompt": "q", "image_1": IMAGE}, ("text-to-image: image_1/2", "found: image_1, prompt")),
    Broken("rlaif-v", {"image": IMAGE, "question": "q"}, ("missing: chosen, rejected", "found: image, question")),
    Broken(
        "rlaif-v", {"image": "data:image/png;base64,AAAA", "question": "q", "chosen": "a", "rejected": "b"}, ("image", "3 bytes")
    ),
    Broken("spa-vl", {"image": "../x.png", "question": "q", "chosen": "a", "rejected": "b"}, ("'../x.png' lies outside",)),
    Broken("rlhf-v", {"image": IMAGE, "text": "{"}, ("text", "not JSON".removeprefix("not "), "found '{'")),
    Broken("vlfeedback", {"prompt": "q", "completions": []}, ("image or img_path",)),
    Broken("mm-rlhf", {"prompt": "q", "chosen": "a", "rejected": "b"}, ("expected image or video",)),
    Broken("pick-a-pic", {"caption": "c", "image_0_url": "u"}, ("missing: jpg_0, jpg_1, label_0, label_1", "found: caption")),
    Broken("pick-a-pic", {"caption": "c", "jpg_0": IMAGE, "jpg_1": IMAGE, "label_0": 1, "label_1": 1}, ("label_0", "found 1, 1")),
    Broken("hpdv2", {"prompt": "p", "file_path": ["a"]}, ("missing: human_preference",)),
    Broken("imagerewarddb", {"prompt": "p", "image_path": "a"}, ("missing: prompt_id, rank",)),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: f"{broken.importer}-{broken.named[0][:20]}")
def test_bad_rows_are_named_with_what_was_found_and_expected(tmp_path: Path, broken: Broken) -> None:
    source = written(tmp_path / "source", [broken.row], "jsonl")
    with pytest.raises(RecordError) as error:
        run_import(broken.importer, source, tmp_path / "new")
    assert "train.jsonl:1:" in str(error.value)
    for named in broken.named:
        assert named in str(error.value)
    assert not (tmp_path / "new/train.jsonl").exists()


WITHOUT_ROWS = {"lerobot", "minari"}  # folders of files that belong together: broken in tests/plugins/action/test_layouts.py


def test_every_importer_has_a_broken_row_here() -> None:
    known = {entry.spec.name for entry in registry().entries("importers")}
    assert {broken.importer for broken in BROKEN} == known - WITHOUT_ROWS


def test_a_few_bad_rows_are_reported_counted_and_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(9)]
    source = written(tmp_path / "source", [*rows[:4], {"prompt": "p"}, *rows[4:]], "jsonl")
    told: list[str] = []
    done = run_import("trl", source, tmp_path / "new", max_skipped=0.1, report=lambda problem: told.append(str(problem)))
    assert done.rows == 10 and done.written[tmp_path / "new/train.jsonl"] == 9
    assert len(told) == 1 and "train.jsonl:5:" in told[0]
    with pytest.raises(RecordError, match="1 of 10 rows .* more than max_skipped=0.05"):
        run_import("trl", source, tmp_path / "other", max_skipped=0.05)


def test_media_of_a_modality_that_nothing_reads_name_the_package(tmp_path: Path) -> None:
    source = written(tmp_path / "source", [{"prompt": "q", "chosen": "a", "rejected": "b", "video": "b.mp4"}], "jsonl")
    (source.parent / "b.mp4").write_bytes(b"video 1")
    importer = registry().get("importers", "mm-rlhf").load()()
    with pytest.raises(RecordError, match="install polyalign-video"):
        import_data(importer, "mm-rlhf", source, tmp_path / "new", modalities={})


def test_the_command_writes_and_counts(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    source = written(tmp_path / "source", rows, "json")
    done = CliRunner().invoke(app, ["import", "trl", str(source), str(tmp_path / "new/all.jsonl")])
    assert done.exit_code == 0, done.output
    assert "all.jsonl: 1 records" in done.output and "1 rows read, 0 problem(s)" in done.output


def test_unverified_layouts_say_so() -> None:
    unverified = {entry.spec.name for entry in registry().entries("importers") if _spec(entry).unverified}
    assert unverified == {"align-anything", "vlfeedback", "mm-rlhf", "imagerewarddb", "lerobot", "minari"}


def _spec(entry: Any) -> ImporterSpec:
    assert isinstance(entry.spec, ImporterSpec) and entry.spec.layout
    return entry.spec
