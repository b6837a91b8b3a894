"""The constraint satisfaction rate: how many of the things asked for a response keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from pydantic import ValidationError

from polyalign.errors import RewardError
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import RewardSpec
from polyalign.rewards.base import Judged, Reward, Scored, asked, checked
from polyalign.rewards.config import RewardTerm
from polyalign.rewards.rules.config import ConstraintsConfig
from polyalign.rewards.rules.sentences import read_constraints

CONDITION = "constraints"  # of a record: JSON text, a list of rewards


class ConstraintsReward(Reward):
    """``sum of weight * kept / sum of weight`` over the constraints of each item, on [0, 1] (ACT; Zhang et al. 2024).

    Constraints are those of the recipe; those of the record, in its condition "constraints" (JSON text, a list such as
    ``[{"name": "duration", "maximum": 5}]``, of rewards that are rules); and the sentences of `sentences.RULES` in the
    prompt's last user message. Each is a reward of any modality on [0, 1]. An empty text keeps nothing.
    """

    name = "constraints"

    def __init__(self, config: ConstraintsConfig | None = None) -> None:
        self.config = config or ConstraintsConfig()
        self._built: dict[str, Reward] = {}

    def score(self, items: Sequence[Judged]) -> list[float]:
        return self.evaluate(items).values

    def evaluate(self, items: Sequence[Judged]) -> Scored:
        """Return the rates, with "kept" and "asked": how many constraints each item kept whole, and had."""
        wanted = [self._asked_of(item) for item in items]
        members: dict[str, list[int]] = {}
        for position, terms in enumerate(wanted):
            for key in terms:
                members.setdefault(key, []).append(position)
        found = {key: self._values(key, wanted, positions, items) for key, positions in members.items()}
        values, kept = [], []
        for position, (item, terms) in enumerate(zip(items, wanted, strict=True)):
            blank = isinstance(item.output, str) and not item.output.strip()
            parts = {key: 0.0 if blank else found[key][position] for key in terms}
            kept.append(float(sum(value == 1 for value in parts.values())))
            values.append(self._rate(terms, parts))
        return Scored(values, {"kept": kept, "asked": [float(len(terms)) for terms in wanted]})

    def _rate(self, terms: dict[str, RewardTerm], parts: dict[str, float]) -> float:
        if not terms:
            return self.config.none
        if self.config.credit == "all":
            return float(all(value == 1 for value in parts.values()))
        return sum(terms[key].weight * parts[key] for key in terms) / sum(term.weight for term in terms.values())

    def _asked_of(self, item: Judged) -> dict[str, RewardTerm]:
        """Return the item's constraints by what they say; one that is asked twice counts once."""
        stated = [constraint.term() for constraint in read_constraints(asked(item.prompt))]
        listed = item.conditions.get(CONDITION)
        own = _read(str(listed)) if listed is not None else ()
        return {_written(term): term for term in (*self.config.constraints, *own, *stated)}

    def _values(
        self, key: str, wanted: list[dict[str, RewardTerm]], positions: list[int], items: Sequence[Judged]
    ) -> dict[int, float]:
        term = wanted[positions[0]][key]
        if key not in self._built:
            self._built[key] = term.build()
        scored = checked(term.name, Scored(self._built[key].score([items[position] for position in positions])), len(positions))
        for position, value in zip(positions, scored.values, strict=True):
            if not 0 <= value <= 1:
                raise RewardError(
                    f"constraint {term.name!r} gave item {position} the value {value:g}; a constraint is a reward from 0 to 1 "
                    "(put another one into a threshold)"
                )
        return dict(zip(positions, scored.values, strict=True))


def _written(term: RewardTerm) -> str:
    return json.dumps(term.model_dump(mode="json"), sort_keys=True)


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[RewardTerm, ...]:
    """Return a record's constraints. Data may name rules only: no code, no network, no pattern that never ends."""
    try:
        listed = json.loads(text)
        if not isinstance(listed, list):
            raise TypeError(f"it is a {type(listed).__name__}")
        for slot in listed:
            name = slot["name"] if isinstance(slot, dict) else slot
            rules = [e.spec.name for e in registry().entries("rewards") if isinstance(e.spec, RewardSpec) and e.spec.rule]
            if name not in rules:
                raise ValueError(f"{name!r} is no rule that a record may name; these are: {', '.join(rules)}")
        terms = tuple(RewardTerm.model_validate(slot) for slot in listed)
        if wrong := [term for term in terms if term.weight <= 0]:
            raise ValueError(f"{wrong[0].name!r} has weight {wrong[0].weight:g}; a constraint's weight is above 0")
        return terms
    except (ValueError, TypeError, KeyError) as error:
        problems = error.errors(include_url=False) if isinstance(error, ValidationError) else []
        said = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problems) or str(error)
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise RewardError(
            f"the condition {CONDITION!r} holds {shown!r}, which is no list of constraints ({said}); expected JSON such as "
            '[{"name": "text_length", "maximum": 20}]'
        ) from error
