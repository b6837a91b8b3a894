"""Rewards made of rewards: values from numpy and by hand, errors that name the term and the item."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from polyalign.errors import RewardError
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged, Reward
from polyalign.rewards.config import RewardSlot, RewardTerm

Build = Callable[[dict[str, Any]], Reward]


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file of functions of the output, which is a number or a pair of numbers here."""
    file = tmp_path / "own.py"
    file.write_text(
        "def value(prompt, output): return output\n"
        "def first(prompt, output): return output[0]\n"
        "def second(prompt, output): return output[1]\n"
    )
    return str(file)


def build(slot: dict[str, Any]) -> Reward:
    reward: Reward = RewardSlot.model_validate(slot).build()
    return reward


def items(*outputs: Any, prompts: str | None = None) -> list[Judged]:
    """One item per output; ``prompts`` holds one letter per item."""
    letters = prompts or "p" * len(outputs)
    return [
        Judged((Message(role="user", parts=letter),), output)  # type: ignore[arg-type]
        for letter, output in zip(letters, outputs, strict=True)
    ]


PAIRS = [(1.0, 4.0), (2.0, 0.5), (0.0, 9.0)]


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("weighted", (2.0, -0.5), [2 - 2, 4 - 0.25, 0 - 4.5]),
        ("minimum", (2.0, 1.0), [2.0, 0.5, 0.0]),
        ("product", (1.0, 1.0), [4.0, 1.0, 0.0]),
        ("product", (2.0, 0.5), [1 * 2, 4 * math.sqrt(0.5), 0.0]),
        ("ensemble", (1.0, 1.0), [2.5 - 1.5, 1.25 - 0.75, 4.5 - 4.5]),
    ],
)
def test_combinations_by_hand(own: str, name: str, weights: tuple[float, float], expected: list[float]) -> None:
    terms = [{"name": f"{own}:{which}", "weight": weight} for which, weight in zip(("first", "second"), weights, strict=True)]
    scored = build({"name": name, "terms": terms}).evaluate(items(*PAIRS))
    assert scored.values == pytest.approx(expected)
    assert scored.aspects[f"{own}:first"] == [1.0, 2.0, 0.0]


def test_an_ensemble_weighs_mean_and_disagreement(own: str) -> None:
    """Weights 3 and 1 over 1 and 5: mean 2, variance 3/4 * 1 + 1/4 * 9 = 3; less half a standard deviation."""
    terms = [{"name": f"{own}:first", "weight": 3}, {"name": f"{own}:second", "weight": 1}]
    reward = build({"name": "ensemble", "penalty": 0.5, "terms": terms})
    assert reward.score(items((1.0, 5.0))) == pytest.approx([2 - 0.5 * math.sqrt(3)])
    agreed = build({"name": "ensemble", "penalty": 100, "terms": terms})
    assert agreed.score(items((0.7, 0.7))) == pytest.approx([0.7])


def test_a_threshold_gives_constants_or_the_reward_itself(own: str) -> None:
    inner = {"name": f"{own}:value"}
    assert build({"name": "threshold", "reward": inner, "at": 2}).score(items(1.9, 2.0, 3.0)) == [0.0, 1.0, 1.0]
    kept = build({"name": "threshold", "reward": inner, "at": 2, "above": None, "below": -1})
    assert kept.score(items(1.9, 2.0, 3.0)) == [-1.0, 2.0, 3.0]


NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


@given(NUMBERS, NUMBERS)
def test_group_normalisation_is_numpys_z_score_within_each_prompt(left: list[float], right: list[float]) -> None:
    class Values(Reward):
        def score(self, items: Any) -> list[float]:
            return [item.output for item in items]

    if len(left) == len(right) == 1:
        return
    reward = build({"name": "normalised", "reward": {"name": "text_length", "maximum": 1}})
    reward.rewards = [Values()]  # type: ignore[attr-defined]
    both = np.array([*left, *right])
    mixed = np.random.default_rng(0).permutation(len(both))
    letters = np.array(list("a" * len(left) + "b" * len(right)))
    found = np.array(reward.score(items(*both[mixed], prompts="".join(letters[mixed]))))
    for letter, values in (("a", np.array(left)), ("b", np.array(right))):
        spread = values.std()
        if spread > 1e-6 * np.abs(values).max():
            expected = (both[mixed][letters[mixed] == letter] - values.mean()) / spread
            assert found[letters[mixed] == letter] == pytest.approx(expected, abs=1e-6)
        elif spread == 0:
            assert (found[letters[mixed] == letter] == 0).all()


def test_group_normalisation_refuses_prompts_with_one_response_each(own: str) -> None:
    reward = build({"name": "normalised", "reward": {"name": f"{own}:value"}})
    with pytest.raises(RewardError, match="several samples per prompt"):
        reward.score(items(1.0, 2.0, prompts="ab"))


def test_running_statistics_are_those_of_everything_seen_and_resume(own: str) -> None:
    slot = {"name": "normalised", "by": "running", "reward": {"name": f"{own}:value"}}
    whole = {"name": "weighted", "terms": [slot]}
    seen = np.random.default_rng(1).normal(5, 3, 60)
    reward = build(whole)
    for start in range(0, 40, 10):
        reward.score(items(*seen[start : start + 10]))
    resumed = build(whole)
    resumed.restore(json.loads(json.dumps(reward.state())))
    found = resumed.score(items(*seen[40:]))
    assert found == pytest.approx((seen[40:] - seen.mean()) / seen.std())
    assert found == reward.score(items(*seen[40:]))


def test_fixed_statistics_clip_and_uncentred(own: str) -> None:
    inner = {"name": f"{own}:value"}
    fixed = {"name": "normalised", "by": "fixed", "reward": inner, "mean": 10, "std": 2}
    assert build(fixed | {"clip": 3}).score(items(12.0, 100.0, 0.0)) == [1.0, 3.0, -3.0]
    assert build(fixed | {"centre": False}).score(items(12.0, -4.0)) == [6.0, -2.0]
    with pytest.raises(ValidationError, match="set by: fixed"):
        RewardSlot.model_validate({"name": "normalised", "reward": inner, "mean": 3})


def test_a_value_that_is_no_number_names_term_and_item(own: str) -> None:
    reward = build({"name": "weighted", "terms": [{"name": f"{own}:value"}]})
    with pytest.raises(RewardError, match=r"own.py:value' gave item 1 the value nan"):
        reward.score(items(1.0, math.nan))
    product = build({"name": "product", "terms": [{"name": f"{own}:value"}]})
    with pytest.raises(RewardError, match=r"own.py:value' gave item 1 the value -1.*at least 0"):
        product.score(items(1.0, -1.0))
    with pytest.raises(RewardError, match="'product' gave item 0 the value inf"):
        build({"name": "product", "terms": [{"name": f"{own}:value", "weight": 2}]}).score(items(1e200))


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ({"name": "weighted", "terms": []}, "at least 1 item"),
        ({"name": "weighted", "terms": ["text_lenght"]}, "Did you mean 'text_length'"),
        ({"name": "weighted", "terms": [{"name": "text_length", "maximun": 3}]}, "unknown key 'maximun'.*'maximum'"),
        ({"name": "product", "terms": [{"name": "text_length", "maximum": 1, "weight": -1}]}, "exponents, above 0"),
        ({"name": "ensemble", "terms": [{"name": "text_length", "maximum": 1}]}, "at least 2 items"),
    ],
)
def test_mistakes_are_found_before_anything_runs(slot: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardSlot.model_validate(slot)


def test_nested_terms_write_themselves_out_and_read_back(own: str) -> None:
    slot = {
        "name": "weighted",
        "terms": [
            {"name": f"{own}:first", "weight": 2.0},
            {"name": "minimum", "terms": [{"name": f"{own}:second"}, {"name": f"{own}:second", "weight": -1.0}]},
        ],
    }
    read = RewardTerm.model_validate(slot)
    again = RewardTerm.model_validate(json.loads(json.dumps(read.model_dump(mode="json"))))
    assert again.model_dump() == read.model_dump()
    scored = again.build().evaluate(items((1.0, 3.0)))
    assert scored.values == [2.0 + min(3.0, -3.0)]
    assert scored.aspects["minimum"] == [-3.0]
    assert scored.aspects[f"minimum/{own}:second 2"] == [3.0]
