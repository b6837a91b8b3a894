"""``polyalign data``: what a user types and sees."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from toys.records import plain
from toys.scent import Scent, scent
from typer.testing import CliRunner

from polyalign.cli.data import app
from polyalign.errors import RecordError
from polyalign.records import preview as preview_module
from polyalign.records import validation
from polyalign.records.jsonl import read_jsonl, write_jsonl
from polyalign.records.parquet import read_parquet
from polyalign.records.schema import Comparison, Critique, MediaPart, Rating, Record, Refinement, Segment
from polyalign.records.store import MediaStore

BETTER = Comparison(ranking=(0, 1))


@pytest.fixture(autouse=True)
def only_scents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever plugins are installed, these tests know one modality."""
    monkeypatch.setattr(validation, "installed_modalities", lambda: {"scent": Scent})


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training split of two text records and one of media, and a test split that repeats a prompt."""
    root = tmp_path / "set"
    store = MediaStore(root)
    parts = [{"parts": [MediaPart(media=store.add(scent(name), "scent", "scent/raw"))]} for name in (b"rose", b"tar")]
    records = [
        plain("a", "p", "long answer", "short", feedback=(BETTER,), tags=("t",)),
        plain("b", "q", "x", "yyy", "zz", feedback=(Comparison(ranking=(1, [0, 2]), annotator="ann"),)),
        Record(id="c", prompt="smell", candidates=parts, feedback=(BETTER,), licence="CC0"),
    ]
    write_jsonl(root / "train.jsonl", records)
    write_jsonl(root / "test.jsonl", [plain("d", "p", "u", "v", feedback=(BETTER,))])
    return root


def cells(output: str, label: str) -> list[str]:
    (line,) = [line for line in output.splitlines() if line.strip().startswith(label)]
    return re.split(r"\s{2,}", line.strip())


def test_validate_counts_and_warns_of_leaks(folder: Path) -> None:
    """Train has 1 + 2 + 1 strict pairs, chosen first in 1 + 1 + 1; three of text, longer by 6, 2 and 1 characters."""
    result = run("validate", folder)
    assert result.exit_code == 0, result.output
    assert cells(result.output, "records") == ["records", "1", "3"]
    assert cells(result.output, "strict pairs") == ["strict pairs", "1", "4"]
    assert cells(result.output, "ties") == ["ties", "0", "1"]
    assert cells(result.output, "chosen longer") == ["chosen longer", "0.0%", "100.0%"]
    assert cells(result.output, "mean difference")[1:] == ["+0.0", "+3.0"]
    assert cells(result.output, "chosen listed first")[1:] == ["100.0%", "75.0%"]
    assert "warning: 1 of the 1 prompts of 'test' are in 'train' too" in result.output
    assert "media decoded: 2 scent" in result.output
    assert result.output.endswith("no problems\n")


def test_validate_prints_each_problem_and_exits_with_one(folder: Path) -> None:
    with (folder / "test.jsonl").open("ab") as file:
        file.write(b'{"id": "e"}\n[bold]{\n')
    result = run("validate", folder)
    assert result.exit_code == 1
    assert result.output.splitlines()[:2] == [
        f"{folder}/test.jsonl:2:candidates: 'candidates' is missing",
        f"{folder}/test.jsonl:3:record: not valid JSON: Expecting value (column 2)",
    ]
    assert result.output.endswith("2 problem(s): missing key 1, json 1\n")
    assert run("validate", folder, "--split", "train").exit_code == 0


def test_a_wrong_split_or_path_is_a_clear_error(folder: Path) -> None:
    for arguments, says in [
        (("validate", folder, "--split", "tset"), "Did you mean 'test'"),
        (("validate", folder / "nothing"), "does not exist"),
        (("stats", folder / "media"), "holds no .jsonl or .parquet file"),
    ]:
        error = run(*arguments).exception
        assert isinstance(error, RecordError)
        assert says in str(error)


def test_stats_prints_counts_per_split(folder: Path) -> None:
    result = run("stats", folder, "--split", "train")
    assert result.exit_code == 0, result.output
    assert cells(result.output, "candidates per record") == ["candidates per record", "2: 2, 3: 1"]
    assert cells(result.output, "annotators")[1] == "(none): 2, ann: 1"
    assert cells(result.output, "licences")[1] == "(none): 2, CC0: 1"
    assert cells(result.output, "media")[1] == "scent: 2, 0.0 MB"
    assert "pairs: 4" in result.output and "grids: 0" in result.output


def test_convert_there_and_back_gives_the_same_records_and_media(folder: Path, tmp_path: Path) -> None:
    assert run("convert", folder, tmp_path / "parquet").exit_code == 0
    result = run("convert", tmp_path / "parquet", tmp_path / "back", "--to", "jsonl")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [f"{tmp_path}/back/test.jsonl: 1 rows", f"{tmp_path}/back/train.jsonl: 3 rows"]
    original = list(read_jsonl(folder / "train.jsonl"))
    assert list(read_jsonl(tmp_path / "back" / "train.jsonl")) == original
    assert list(read_parquet(tmp_path / "parquet" / "train.parquet")) == original
    media = [
        sorted((file.name, file.read_bytes()) for file in (root / "media").iterdir()) for root in (folder, tmp_path / "back")
    ]
    assert media[0] == media[1]


def test_convert_gathers_media_that_lay_at_paths_of_their_own(tmp_path: Path) -> None:
    data = scent(b"rose")
    ref = MediaStore(tmp_path / "old").add(data, "scent", "scent/raw").model_copy(update={"uri": "pictures/rose.bin"})
    (tmp_path / "old" / "pictures").mkdir()
    (tmp_path / "old" / "pictures" / "rose.bin").write_bytes(data)
    record = Record(id="r", prompt="p", candidates=[{"parts": [MediaPart(media=ref)]}], conditions={"uri": "kept"})
    write_jsonl(tmp_path / "old" / "train.jsonl", [record])
    assert run("convert", tmp_path / "old", tmp_path / "new", "--to", "jsonl").exit_code == 0
    ((_, moved),) = read_jsonl(tmp_path / "new" / "train.jsonl")
    assert moved.media()[0].uri is None
    assert moved.conditions == {"uri": "kept"}
    assert MediaStore(tmp_path / "new").read(moved.media()[0]) == data


def test_convert_refuses_what_would_lose_data(folder: Path, tmp_path: Path) -> None:
    for arguments, says in [
        ((folder, tmp_path / "one.parquet"), "is one file: name a folder, or choose one split"),
        ((folder / "train.jsonl", folder / "train.jsonl"), "would be written over itself"),
        ((folder, tmp_path / "trl", "--trl", "pairs", "--split", "train"), "TRL columns hold text only"),
    ]:
        error = run("convert", *arguments).exception
        assert isinstance(error, RecordError)
        assert says in str(error)


def test_convert_to_trl_rows(folder: Path, tmp_path: Path) -> None:
    result = run("convert", folder, tmp_path / "test.jsonl", "--trl", "pairs", "--split", "test")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "test.jsonl").read_text() == (
        '{"prompt": [{"role": "user", "content": "p"}], "chosen": [{"role": "assistant", "content": "u"}], '
        '"rejected": [{"role": "assistant", "content": "v"}]}\n'
    )


class Page(HTMLParser):
    """Collects the tags and the visible text of a page, and whether every tag is closed."""

    VOID = {"meta", "img", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.shown: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.shown).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.shown.append(data)


HOSTILE = '<script>alert(1)</script> & "quotes" {{ 7 * 7 }}'


def test_preview_escapes_everything_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    """Every field that holds text holds an attack; the page shows it as text."""
    media = MediaPart(media=MediaStore(tmp_path).add(scent(b"<b>rose</b>"), "scent", "scent/raw"))
    record = Record(
        id=HOSTILE,
        prompt=[{"role": "user", "parts": [{"type": "text", "text": HOSTILE}, media]}],
        candidates=[{"parts": HOSTILE, "producer": HOSTILE, "conditions": {HOSTILE: HOSTILE}}, {"parts": [media]}],
        feedback=[
            Comparison(ranking=(1, 0), aspect=HOSTILE, annotator=HOSTILE, strength=2),
            Critique(candidate=0, parts=HOSTILE),
            Rating(candidate=0, value=2, scale=(0, 8), aspect=HOSTILE),
        ],
        group=HOSTILE,
        tags=(HOSTILE,),
        conditions={HOSTILE: HOSTILE},
        provenance={"source": HOSTILE, "method": HOSTILE, "notes": HOSTILE},
        licence=HOSTILE,
    )
    write_jsonl(tmp_path / "train.jsonl", [record])
    result = run("preview", tmp_path, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags and "b" in page.tags
    # id, prompt; answer, producer, condition 2; comparison 2, critique, rating; group, tag, condition 2, source 3, licence
    assert page.text.count(HOSTILE) == html.count("&lt;script&gt;") == 18
    assert html.count('<em class="scent">&lt;b&gt;rose&lt;/b&gt;</em>') == 2
    assert all(address.startswith("data:") for address in page.addresses)


def test_preview_says_who_won_in_words(tmp_path: Path) -> None:
    feedback = (
        Comparison(ranking=(2, [0, 1]), incomparable=(3,), aspect="taste", annotator="ann", strength=0.5),
        Refinement(before=1, after=2),
        Segment(candidate=0, start=0, end=1.5, value=-1),
        Rating(candidate=3, value=3, scale=(1, 5)),
    )
    write_jsonl(tmp_path / "train.jsonl", [plain("r", "p", *"wxyz", feedback=feedback), plain("s", "unseen", "a")])
    page = Page(preview_module.preview(tmp_path, limit=1, modalities={}))
    assert "C > A = B; not comparable: D · taste · strength 0.5 · by ann" in page.text
    assert "B was refined into C" in page.text
    assert "A is bad (-1) from 0 to 1.5 seconds" in page.text
    assert "overall: 3 (1 to 5)" in page.text
    assert "C preferred y" in page.text and "A dispreferred w" in page.text
    assert "1 of 2 records" in page.text and "unseen" not in page.text


def test_preview_shows_the_reason_where_a_medium_cannot_be_shown(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    gone, unknown = store.add(scent(b"gone"), "scent", "scent/raw"), store.add(b"x", "touch", "touch/raw")
    store.path(gone).unlink()
    parts = [MediaPart(media=gone), MediaPart(media=unknown)]
    write_jsonl(tmp_path / "train.jsonl", [Record(id="r", prompt="p", candidates=[{"parts": parts}])])
    page = Page(preview_module.preview(tmp_path, modalities={"scent": Scent}))
    assert "scent, scent/raw, 10 bytes: media/" in page.text and "does not exist" in page.text
    assert "touch, touch/raw, 1 bytes: no installed plugin shows 'touch'" in page.text
