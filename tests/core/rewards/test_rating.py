"""Rewards over stored records: ratings, rankings, and the command that writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from polyalign.cli.main import main
from polyalign.errors import PolyalignError
from polyalign.records.dataset import ExampleDataset
from polyalign.records.jsonl import read_jsonl, write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, Rating, Record
from polyalign.records.store import MediaStore
from polyalign.rewards import rating
from polyalign.rewards.base import Judged, Reward
from polyalign.rewards.rating import candidates_of, rate
from polyalign.training.config import SourceConfig


class Length(Reward):
    """Characters of the response; remembers how many items each call had."""

    name = "length"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, items: Sequence[Judged]) -> list[float]:
        self.calls.append(len(items))
        return [float(len(item.output)) for item in items]


def record(id: str, *texts: str, **fields: Any) -> Record:
    return Record(id=id, prompt="Say it.", candidates=tuple(Candidate(parts=text) for text in texts), **fields)  # type: ignore[arg-type]


def written(tmp_path: Path, *records: Record) -> Path:
    write_jsonl(tmp_path / "in.jsonl", records)
    return tmp_path / "in.jsonl"


def read(path: Path) -> list[Record]:
    return [record for _, record in read_jsonl(path)]


def rankings(record: Record) -> list[tuple[tuple[int, ...], ...]]:
    return [said.ranking for said in record.feedback if isinstance(said, Comparison) and said.annotator == "reward:length"]


def test_candidates_are_rated_on_one_scale_and_ranked_with_ties(tmp_path: Path) -> None:
    human = Comparison(ranking=((0,), (1,)), annotator="anna")
    source = written(tmp_path, record("a", "xxx", "x", "yyy", feedback=(human,)), record("b", "z"))
    out = tmp_path / "out" / "rated.jsonl"
    rated = rate(source, out, {"length": Length()}, rank="all")
    first, second = read(out)
    ratings = [said for said in first.feedback if isinstance(said, Rating)]
    assert [(r.candidate, r.value, r.aspect, r.annotator) for r in ratings] == [
        (0, 3, "length", "reward:length"),
        (1, 1, "length", "reward:length"),
        (2, 3, "length", "reward:length"),
    ]
    assert {r.scale for r in [*ratings, second.feedback[0]]} == {(0.0, 3.0)}  # type: ignore[union-attr]
    assert first.feedback[0] == human
    assert rankings(first) == [((0, 2), (1,))] and rankings(second) == []
    assert rated.agreement["length"] == [1.0] and rated.comparisons == 1


def test_rating_again_replaces_what_the_reward_said_before(tmp_path: Path) -> None:
    source = written(tmp_path, record("a", "xx", "x"))
    rate(source, tmp_path / "once.jsonl", {"length": Length()}, rank="all")
    rate(tmp_path / "once.jsonl", tmp_path / "twice.jsonl", {"length": Length()}, rank="all")
    assert read(tmp_path / "twice.jsonl") == read(tmp_path / "once.jsonl")


def test_extremes_margin_and_prompts_of_their_own(tmp_path: Path) -> None:
    grid = Record(
        id="g",
        candidates=tuple(
            Candidate(parts=text, prompt=({"role": "user", "parts": prompt},))  # type: ignore[arg-type]
            for text, prompt in (("x", "p"), ("xx", "p"), ("yyy", "q"), ("y", "q"))
        ),
    )
    source = written(tmp_path, record("a", "xx", "xxxx", "x", "xxx"), grid)
    rate(source, tmp_path / "extremes.jsonl", {"length": Length()}, rank="extremes")
    assert [rankings(one) for one in read(tmp_path / "extremes.jsonl")] == [[((1,), (2,))], [((1,), (0,)), ((2,), (3,))]]
    rate(source, tmp_path / "margin.jsonl", {"length": Length()}, rank="all", margin=1)
    assert rankings(read(tmp_path / "margin.jsonl")[0]) == [((1, 3), (0, 2))]


def test_what_was_ranked_is_what_training_reads(tmp_path: Path) -> None:
    """Best of n and iterative DPO: sampled candidates without feedback become edges, and the best one is what SFT imitates."""
    rate(written(tmp_path, record("a", "x", "xxx", "xx")), tmp_path / "out.jsonl", {"length": Length()}, rank="all")
    config = (SourceConfig(path=str(tmp_path / "out.jsonl"), split="out"),)
    pairs = ExampleDataset(config, "pairs")
    found = [
        (example.samples[edge.better].response[0].text, example.samples[edge.worse].response[0].text)  # type: ignore[union-attr]
        for example in (pairs[number] for number in range(len(pairs)))
        for edge in example.edges
    ]
    assert sorted(found) == [("xx", "x"), ("xxx", "x"), ("xxx", "xx")]
    imitated = ExampleDataset(config, "sft")
    assert [sample.response[0].text for sample in imitated[0].samples] == ["xxx"]  # type: ignore[union-attr]


def test_records_of_a_group_are_judged_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rating, "JUDGED_AT_ONCE", 2)
    groups = ["a", "b", "b", "b", None, None, None]
    source = written(tmp_path, *(record(str(at), "x", "y", group=group) for at, group in enumerate(groups)))
    reward = Length()
    rate(source, tmp_path / "out.jsonl", {"length": reward})
    assert reward.calls == [8, 4, 2]


def test_media_are_decoded_mixed_responses_are_tuples_and_files_move_along(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    from polyalign_image.modality import ImageModality

    data = ImageModality().encode(image.new("RGB", (3, 5), "red"), "image/png")
    ref = MediaStore(tmp_path).add(data, "image", "image/png")
    parts: tuple[Any, ...] = (MediaPart(media=ref),)
    candidates = (
        Candidate(parts=parts, conditions={"success": True}),
        Candidate(parts=({"type": "text", "text": "a"}, *parts)),
        Candidate(parts="b"),
    )
    one = Record(id="a", prompt="Draw.", candidates=candidates, conditions={"answer": "5"}, group="g")  # type: ignore[arg-type]
    first, second, third = candidates_of(one, MediaStore(tmp_path))
    assert first.output.size == (3, 5) and first.conditions == {"answer": "5"} and first.info == {"success": True}
    assert second.output[0] == "a" and second.output[1].size == (3, 5) and third.output == "b"
    assert {item.group for item in (first, second, third)} == {"g"}

    class Size(Reward):
        def score(self, items: Sequence[Judged]) -> list[float]:
            return [1.0 if hasattr(item.output, "size") else 0.0 for item in items]

    rate(written(tmp_path, one), tmp_path / "elsewhere" / "out.jsonl", {"size": Size()})
    assert MediaStore(tmp_path / "elsewhere").read(ref) == data


def test_mistakes_are_named(tmp_path: Path) -> None:
    source = written(tmp_path, record("a", "x"))
    two = {"one": Length(), "two": Length()}
    for target, rewards, rank, message in (
        ("out.parquet", two, None, "does not end in .jsonl"),
        ("in.jsonl", two, None, "written over itself"),
        ("out.jsonl", two, "all", "ranking takes one reward, found one, two"),
    ):
        with pytest.raises(PolyalignError, match=message):
            rate(source, tmp_path / target, rewards, rank=rank)  # type: ignore[arg-type]
    write_jsonl(tmp_path / "other.jsonl", [record("b", "x")])
    with pytest.raises(PolyalignError, match="splits in, other; choose one"):
        rate(tmp_path, tmp_path / "out.jsonl", two)


def test_the_command_takes_a_reward_a_slot_a_function_or_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = Comparison(ranking=((1,), (0,)), annotator="anna")
    source, out = str(written(tmp_path, record("a", "one two three", "one", feedback=(better,)))), tmp_path / "out.jsonl"

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["score", *arguments, "--data", source, "--out", str(out)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    code, said, _ = run("text_length", "maximum=2", "--rank", "all")
    assert code == 0 and "text_length: mean 0.500" in said and "agrees with 1.000" in said and "1 comparisons" in said
    slot = {
        "name": "minimum",
        "terms": [{"name": "text_length", "maximum": 2}, {"name": "text_length", "minimum": 1, "weight": 2}],
    }
    code, said, _ = run(json.dumps(slot), "--parts")
    assert code == 0 and "minimum/text_length 2: mean 1.000" in said
    (tmp_path / "own.py").write_text("def f(prompt, output): return len(output)")
    code, said, _ = run(f"{tmp_path}/own.py:f", "--rank", "extremes")
    assert code == 0 and "agrees with 0.000" in said
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: x\npolicy: {name: text, base: b}\nobjective: dpo\ndata: {train: [{path: d}]}\n"
        "report: {rewards: [{name: text_length, maximum: 1}, own.py:f]}\n"
    )
    code, said, _ = run(str(recipe), "report.rewards.0.maximum=3")
    assert code == 0 and "text_length: mean 1.000" in said and "own.py:f: mean 8.000" in said
    code, _, said = run("text_lenght")
    assert code == 2 and "'text_lenght' is no reward, no recipe and no file. Did you mean 'text_length'?" in said
    code, _, said = run("text_length", "maximum=few")
    assert code == 2 and "maximum: Input should be a valid number" in said
    assert main(["score", "text_length", "maximum=2", "--data", source]) == 2 and "--out FILE.jsonl" in capsys.readouterr().err
    assert main(["score", "text_length", "--rank", "all"]) == 2 and "go with --data" in capsys.readouterr().err
