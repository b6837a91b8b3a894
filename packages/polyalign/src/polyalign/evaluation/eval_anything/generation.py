"""AMG: instructions followed by modality, modalities chosen as people would, and what was made in them fitting together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from polyalign.errors import RecordError
from polyalign.evaluation.base import Evaluator, Verdict
from polyalign.evaluation.eval_anything.config import AMGConfig, InstructionSlot
from polyalign.evaluation.eval_anything.formulas import MODALITIES, PAIRS, amg
from polyalign.evaluation.eval_anything.understanding import on_unit
from polyalign.evaluation.intervals import bootstrap_means
from polyalign.rewards.base import Judged, checked

SELECTION = "selection"
PARTS = (*(f"instruction/{name}" for name in MODALITIES), SELECTION, *(f"synergy/{pair}" for pair in PAIRS))
VISUAL = frozenset({"image", "video"})
VOTES = "votes/"  # conditions votes/text, votes/text+visual ...: how many people would answer so


class AMG(Evaluator):
    """A verdict per part; that of ``amg/selection`` carries the AMG itself with its interval.

    The condition ``part`` of each item is one of `PARTS`. Items of selection carry the votes as conditions; which modalities a
    response chose is read from what it is made of, or from the slots in its text.
    """

    def __init__(self, config: AMGConfig) -> None:
        self.config = config
        self.slots = {name: re.compile(pattern, re.DOTALL | re.IGNORECASE) for name, pattern in config.slots.items()}

    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        by_part: dict[str, list[Judged]] = {part: [] for part in PARTS}
        for item in items:
            part = str(item.conditions.get("part"))
            if part not in by_part:
                raise RecordError(f"a record has the condition part={part!r}; AMG knows {', '.join(PARTS)}")
            by_part[part].append(item)
        if lacking := [part for part, members in by_part.items() if not members]:
            raise RecordError(f"no record is of part {', '.join(lacking)}; AMG is made of all of {', '.join(PARTS)}")
        values = {part: self._values(part, members) for part, members in by_part.items()}
        score = bootstrap_means(
            values,
            lambda means: amg(
                means[SELECTION],
                {name: means[f"instruction/{name}"] for name in MODALITIES},
                {pair: means[f"synergy/{pair}"] for pair in PAIRS},
            ),
        )
        return [
            Verdict(f"amg/{part}", tuple(found), {"AMG": str(score)} if part == SELECTION else {})
            for part, found in values.items()
        ]

    def _values(self, part: str, items: Sequence[Judged]) -> list[float]:
        if part == SELECTION:
            return [self._share(item) for item in items]
        kind, _, which = part.partition("/")
        slot = self.config.synergy if kind == "synergy" else getattr(self.config, which)
        values = [on_unit(value, slot.name) for value in checked(slot.name, slot.build().evaluate(items), len(items)).values]
        lowest = slot.lowest if isinstance(slot, InstructionSlot) else None
        return values if lowest is None else [lowest + (10 - lowest) * value for value in values]

    def _share(self, item: Judged) -> float:
        """Return the share of votes for the modalities chosen; a third of it for all three, which anybody could answer with."""
        votes = {key.removeprefix(VOTES): float(value) for key, value in item.conditions.items() if key.startswith(VOTES)}
        if not (total := sum(votes.values())):
            raise RecordError(f"a record of selection has no votes; it needs conditions such as {VOTES}text, {VOTES}text+visual")
        chosen = self.chosen(item)
        share = next((count for key, count in votes.items() if set(key.split("+")) == chosen), 0.0) / total
        return share / 3 if len(chosen) == len(MODALITIES) else share

    def chosen(self, item: Judged) -> set[str]:
        """Return the modalities of a response: of its parts, or where it is text alone, of text and slots in it."""
        made = {"visual" if name in VISUAL else name for name in item.modalities} - {"text"}
        text = item.output if isinstance(item.output, str) else "".join(one for one in _parts(item) if isinstance(one, str))
        for name, pattern in self.slots.items():
            made |= {name} if pattern.search(text) else set()
            text = pattern.sub("", text)
        return made | ({"text"} if text.strip() else set())


def _parts(item: Judged) -> Sequence[object]:
    return item.output if isinstance(item.output, tuple) else (item.output,)
