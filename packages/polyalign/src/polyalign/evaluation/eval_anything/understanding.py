"""AMU: answers about text with pictures, videos and sounds, rated against what ten people answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polyalign.errors import RecordError
from polyalign.evaluation.base import Evaluator, Verdict
from polyalign.evaluation.eval_anything.config import AMUConfig
from polyalign.evaluation.eval_anything.formulas import amu
from polyalign.evaluation.intervals import bootstrap_means
from polyalign.records.samples import Prompt
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.rewards.base import Judged, Reward, checked

CATEGORY, REFERENCES = "category", "references"


class AMU(Evaluator):
    """A verdict per category, and ``amu`` over all: its values are weighted so that their mean is the mean of category means.

    Each item has the conditions ``category`` and ``references``, the latter JSON: a list of ``{answer, keywords: {visual: [],
    auditory: []}}``. The judge reads them in a system message before the question.
    """

    def __init__(self, config: AMUConfig) -> None:
        self.config = config
        self.judge_reward: Reward = config.judge.build()

    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        categories = [_condition(item, CATEGORY) for item in items]
        asked = [self._with_references(item, category) for item, category in zip(items, categories, strict=True)]
        judged = checked(self.config.judge.name, self.judge_reward.evaluate(asked), len(asked)).values
        ratings = [1 + 9 * on_unit(value, self.config.judge.name) for value in judged]
        names = sorted(set(categories))
        by_category = {
            name: [rating for rating, category in zip(ratings, categories, strict=True) if category == name] for name in names
        }
        weighted = tuple(
            rating * len(items) / (len(names) * len(by_category[name])) for rating, name in zip(ratings, categories, strict=True)
        )
        interval = bootstrap_means(by_category, amu)
        whole = Verdict("amu", weighted, {"resampled within categories": str(interval)})
        return [whole, *(Verdict(f"amu/{name}", tuple(values)) for name, values in by_category.items())]

    def _with_references(self, item: Judged, category: str) -> Judged:
        lines = [self.config.rubrics[category]] if category in self.config.rubrics else []
        for number, reference in enumerate(_references(item), 1):
            lines.append(f"Reference answer {number}: {reference['answer']}")
            keywords = reference.get("keywords", {})
            lines += [f"  {sense} clues: {', '.join(words)}" for sense, words in keywords.items() if words]
        told = Message(role="system", parts=(TextPart(text="\n".join(lines)),))
        question = tuple(item.prompt) if self.config.show_media else tuple(map(_without_media, item.prompt))
        return replace(item, prompt=Prompt.of((told, *question), item.media, item.conditions))


def on_unit(value: float, name: str) -> float:
    """Return the value if it lies on [0, 1]. Raises `RecordError` otherwise: scores would leave their scale."""
    if not 0 <= value <= 1:
        raise RecordError(f"reward {name!r} gave {value:g}; eval-anything needs one on [0, 1], such as judge or a rule")
    return value


def _condition(item: Judged, key: str) -> str:
    if key not in item.conditions:
        held = ", ".join(item.conditions) or "none"
        raise RecordError(f"a record has no condition {key!r}, which eval-anything reads; it has: {held}")
    return str(item.conditions[key])


def _references(item: Judged) -> list[dict[str, Any]]:
    text = _condition(item, REFERENCES)
    try:
        found = json.loads(text)
        if isinstance(found, list) and all(isinstance(one["answer"], str) for one in found):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise RecordError(f"condition {REFERENCES!r} is {text[:80]!r}; expected JSON: a list of objects with the text 'answer'")


def _without_media(message: Message) -> Message:
    parts = tuple(TextPart(text=f"[{part.media.modality}]") if isinstance(part, MediaPart) else part for part in message.parts)
    return message.model_copy(update={"parts": parts})
