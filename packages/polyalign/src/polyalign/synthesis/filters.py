"""Which refinements become pairs: those that changed something, within bounds, and that a judge prefers too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from polyalign.records.judgements import same_content
from polyalign.records.schema import MediaPart, text_of
from polyalign.rewards.base import Reward, checked
from polyalign.synthesis.config import FilterConfig
from polyalign.synthesis.drafts import Draft
from polyalign.synthesis.stages import Stages

JUDGED_AT_ONCE = 32  # pairs


def changed(drafts: Sequence[Draft], filters: FilterConfig, dropped: Counter[str]) -> list[Draft]:
    """Return the drafts whose refinement is not the response again (white space aside), and whose text has a length allowed."""
    kept = []
    for draft in drafts:
        before, after = text_of(draft.response), text_of(draft.refined)
        media = any(isinstance(part, MediaPart) for part in draft.refined)
        if same_content(draft.response, draft.refined) or (not media and before.split() == after.split()):
            dropped["refined to the same response"] += 1
        elif not media and not _allowed(len(before), len(after), filters):
            dropped["refined to a length not allowed"] += 1
        else:
            kept.append(draft)
    return kept


def agreed(drafts: Sequence[Draft], filters: FilterConfig, stages: Stages, dropped: Counter[str]) -> list[Draft]:
    """Return the drafts whose refinement the judge prefers to the response by more than the margin; all, without a judge."""
    slot = filters.judge
    if slot is None:
        return list(drafts)
    judges: list[Reward] = []

    def values(part: list[Draft]) -> list[list[float]]:
        if not judges:
            judges.append(slot.build())
        items = [draft.judged(parts) for draft in part for parts in (draft.response, draft.refined)]
        found = checked(slot.name, judges[0].evaluate(items), len(items)).values
        return [[float(before), float(after)] for before, after in zip(found[::2], found[1::2], strict=True)]

    named = slot.model_dump(mode="json")
    kept: list[tuple[int, Draft]] = []
    for part in _one_per_prompt(drafts):
        pairs = [draft for _, draft in part]
        found = stages.results("agreement", pairs, lambda draft: [named, draft.content()], values, JUDGED_AT_ONCE)
        kept += [placed for placed, (before, after) in zip(part, found, strict=True) if after - before > filters.margin]
    dropped["not preferred by the judge"] += len(drafts) - len(kept)
    return [draft for _, draft in sorted(kept, key=lambda placed: placed[0])]


def _allowed(before: int, after: int, filters: FilterConfig) -> bool:
    if filters.longest is not None and after > filters.longest:
        return False
    if filters.longest_ratio is not None and after > filters.longest_ratio * max(1, before):
        return False
    return after >= filters.shortest


def _one_per_prompt(drafts: Sequence[Draft]) -> list[list[tuple[int, Draft]]]:
    """Return the drafts with their places in rounds of distinct prompts: to a reward that compares siblings, the two responses of
    one draft are all the siblings there are."""
    rounds: list[list[tuple[int, Draft]]] = []
    seen: Counter[Any] = Counter()
    for place, draft in enumerate(drafts):
        at = seen[tuple(draft.prompt)]
        seen[tuple(draft.prompt)] += 1
        if at == len(rounds):
            rounds.append([])
        rounds[at].append((place, draft))
    return rounds
