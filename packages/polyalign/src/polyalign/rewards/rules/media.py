"""Verifiers of any modality: how long a medium lasts, and what an environment said."""

from __future__ import annotations

from collections.abc import Mapping

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged
from polyalign.rewards.rules.base import Verifier, within
from polyalign.rewards.rules.config import RangeConfig, SuccessConfig


class Duration(Verifier):
    """1 if the response lasts for so many seconds, else 0. A decoded medium says so itself, by an attribute ``duration``."""

    name = "duration"
    config: RangeConfig

    def verify(self, item: Judged) -> float:
        seconds = getattr(item.output, "duration", None)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            kind = type(item.output).__name__
            raise RewardError(f"reward 'duration' found no number of seconds in .duration of a {kind}; it judges sound and video")
        return within(seconds, self.config.minimum, self.config.maximum)


class Success(Verifier):
    """What the environment reported of the episode, between 0 and 1; true is 1. For a stored candidate: its condition."""

    name = "success"
    config: SuccessConfig

    def verify(self, item: Judged) -> float:
        found = item.info.get(self.config.key) if isinstance(item.info, Mapping) else None
        if not isinstance(found, bool | int | float) or not 0 <= float(found) <= 1:
            known = f" It reported: {', '.join(sorted(map(str, item.info)))}." if item.info else ""
            raise RewardError(
                f"reward 'success' found {found!r} under {self.config.key!r}; expected true, false or 0 to 1.{known}"
            )
        return float(found)
