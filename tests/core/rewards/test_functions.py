"""Functions of one's own as rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from polyalign.config import load_recipe
from polyalign.errors import RewardError
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign.rewards.config import RewardSlot

SOURCE = """
from dataclasses import dataclass
import beside

@dataclass
class Thing:
    x: "int" = 1

def short(prompt, output): return -len(output) + len(prompt)
def scaled(prompt, output, factor=1.0): return factor * len(output)
def batch(items): return [len(item.output) + Thing().x for item in items]
def twice(items, *, factor): return [factor * len(item.output) for item in items]
def fewer(items): return [1.0]
def words(prompt, output): return "good"
def nothing(): return 1
def three(prompt, output, more): return 1
constant = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("")
    path = tmp_path / "own.py"
    path.write_text(SOURCE)
    return path


def score(name: str, *outputs: Any, **options: Any) -> list[float]:
    slot = {"name": name, **({"options": options} if options else {})}
    items = [Judged((Message(role="user", parts="four"),), output) for output in outputs]  # type: ignore[arg-type]
    values: list[float] = RewardSlot.model_validate(slot).build().score(items)
    return values


def test_a_function_of_one_response_or_of_a_batch(file: Path) -> None:
    assert score(f"{file}:short", "abc", "abcdef") == [1.0, -2.0]
    assert score(f"{file}:batch", "abc", "") == [4.0, 1.0]
    assert score(f"{file}:scaled", "abc", factor=2) == [6.0]
    assert score(f"{file}:twice", "abc", factor=2) == [6.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("shrot", r"no function 'shrot'. Did you mean 'short'\?"),
        ("constant", "no function 'constant'"),
        ("nothing", r"it takes nothing; expected def nothing\(prompt, output\).*or def nothing\(items\)"),
        ("three", "it takes prompt, output, more; expected"),
        ("fewer", "was given 2 items and returned 1 values"),
        ("words", "returned 'good' for item 0; expected a number"),
    ],
)
def test_mistakes_are_named(file: Path, function: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(f"{file}:{function}", "a", "b")


def test_a_missing_or_broken_file_is_named(file: Path) -> None:
    with pytest.raises(RewardError, match="there is no file"):
        score("nowhere.py:f", "a")
    file.write_text("1 / 0")
    with pytest.raises(RewardError, match="running own.py failed: ZeroDivisionError"):
        score(f"{file}:f", "a")


def test_an_option_the_function_does_not_have_is_refused(file: Path) -> None:
    with pytest.raises(RewardError, match="unexpected keyword argument 'fctor'"):
        score(f"{file}:scaled", "a", fctor=2)
    with pytest.raises(ValidationError, match="unknown key 'factor'"):
        RewardSlot.model_validate({"name": f"{file}:scaled", "factor": 2})


def test_a_recipe_finds_functions_beside_itself_or_where_we_are(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = file.parent / "inside" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text(
        "name: x\npolicy: {name: text, base: nowhere}\nobjective: dpo\ndata: {train: [{path: d}]}\n"
        "report:\n  rewards:\n    - near.py:f\n    - own.py:short\n    - {name: minimum, terms: [near.py:f]}\n"
    )
    (recipe.parent / "near.py").write_text("def f(prompt, output): return 1")
    monkeypatch.chdir(file.parent)
    rewards = load_recipe("inside/recipe.yaml").rewards
    assert [spec.name for spec, _ in rewards] == ["inside/near.py:f", "own.py:short", "minimum"]
    assert [spec.load()(config).score([Judged((), "ab")]) for spec, config in rewards] == [[1.0], [-2.0], [1.0]]
