"""What every reward of the core keeps to, rules and combinations alike."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polyalign.records.schema import Message
from polyalign.rewards.base import Judged, Reward
from polyalign.rewards.config import RewardSlot
from polyalign.rewards.specs import COMBINED, RULES


class Text(str):
    """A response that lasts: every rule finds what it looks at."""

    duration = 2.0


TERMS = [{"name": "text_length", "maximum": 2}, {"name": "keywords", "include": ["tea"]}]
OPTIONS: dict[str, dict[str, Any]] = {
    "text_length": {"maximum": 2},
    "keywords": {"include": ["tea", "cup"]},
    "letter_case": {"case": "lower"},
    "starts_with": {"text": "a"},
    "ends_with": {"text": "."},
    "regex": {"pattern": "a+"},
    "duration": {"minimum": 1},
    "constraints": {"constraints": TERMS},
    "weighted": {"terms": TERMS},
    "minimum": {"terms": TERMS},
    "product": {"terms": TERMS},
    "ensemble": {"terms": TERMS},
    "threshold": {"reward": TERMS[1], "at": 1},
    "normalised": {"reward": TERMS[1]},
}
SAID = ["a cup of tea.", "Tea, before", "42", '{"a": 1}', "a after", "B", "tea cup tea cup", "later."]


def items() -> list[Judged]:
    fields = {"conditions": {"answer": "42", "first": "x", "second": "y"}, "info": {"success": True}, "group": "g"}
    return [
        Judged((Message(role="user", parts=f"Prompt {number // 2}?"),), Text(text), **fields)  # type: ignore[arg-type]
        for number, text in enumerate(SAID)
    ]


def build(name: str) -> Reward:
    slot = RewardSlot.model_validate({"name": name, **OPTIONS.get(name, {})})
    assert RewardSlot.model_validate(json.loads(json.dumps(slot.model_dump(mode="json")))).model_dump() == slot.model_dump()
    reward: Reward = slot.build()
    return reward


@pytest.mark.parametrize("spec", (*COMBINED, *RULES), ids=lambda spec: spec.name)
def test_one_number_each_in_order_and_the_same_again(spec: Any) -> None:
    reward, given = build(spec.name), items()
    values = reward.score(given)
    assert reward.name == spec.name and len(values) == len(given) and all(isinstance(value, float) for value in values)
    assert reward.score(given) == values == reward.evaluate(given).values == build(spec.name).score(given)
    assert all(len(part) == len(given) for part in reward.evaluate(given).aspects.values())
    turned = [*given[6:], *given[:6]]  # whole prompts change places: siblings keep their order
    assert reward.score(turned) == [*values[6:], *values[:6]]
    assert reward.score([]) == []
    assert not spec.rule or all(0 <= value <= 1 for value in values)
    reward.restore(reward.state())
