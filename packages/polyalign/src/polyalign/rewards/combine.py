"""Rewards made of rewards: sums, products, the least, thresholds, normalised scales, and ensembles that may disagree."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, Reward, Scored, checked
from polyalign.rewards.config import (
    CombinedConfig,
    EnsembleConfig,
    NormalisedConfig,
    RewardSlot,
    ThresholdConfig,
)
from polyalign.slots import numbered

CONSTANT = 1e-12  # a standard deviation below this share of the largest value is rounding, not variation


class Nested(Reward):
    """A reward over other rewards. Their values, and their parts' values, are its aspects; their states are its state."""

    def __init__(self, slots: Sequence[RewardSlot]) -> None:
        self.labels = numbered([slot.name for slot in slots])
        self.rewards: list[Reward] = [slot.build() for slot in slots]

    def score(self, items: Sequence[Judged]) -> list[float]:
        return self.evaluate(items).values

    def evaluate(self, items: Sequence[Judged]) -> Scored:
        parts = [
            checked(label, reward.evaluate(items), len(items)) for label, reward in zip(self.labels, self.rewards, strict=True)
        ]
        aspects = dict(zip(self.labels, (part.values for part in parts), strict=True))
        for label, part in zip(self.labels, parts, strict=True):
            aspects |= {f"{label}/{name}": values for name, values in part.aspects.items()}
        table = np.asarray([part.values for part in parts], dtype=np.float64)  # [R, N]
        with np.errstate(all="ignore"):  # what overflows is found below, and named
            values = self.combine(table, items).tolist()
        return checked(self.name, Scored(values, aspects), len(items))

    @abstractmethod
    def combine(self, table: np.ndarray, items: Sequence[Judged]) -> np.ndarray:
        """Return one value per item, ``[N]``, of the rewards' values ``[R, N]``."""

    def state(self) -> dict[str, Any]:
        states = {label: reward.state() for label, reward in zip(self.labels, self.rewards, strict=True)}
        return {label: state for label, state in states.items() if state}

    def restore(self, state: Mapping[str, Any]) -> None:
        for label, reward in zip(self.labels, self.rewards, strict=True):
            if label in state:
                reward.restore(state[label])


class Combined(Nested):
    """A reward over weighted terms."""

    def __init__(self, config: CombinedConfig) -> None:
        super().__init__(config.terms)
        self.weights = np.asarray([term.weight for term in config.terms])[:, None]  # [R, 1]


class Weighted(Combined):
    """The sum of ``weight * reward``. With a negative weight a reward is a penalty."""

    name = "weighted"

    def combine(self, table: np.ndarray, items: Sequence[Judged]) -> np.ndarray:
        total: np.ndarray = (self.weights * table).sum(0)
        return total


class Minimum(Combined):
    """The least of ``weight * reward``."""

    name = "minimum"

    def combine(self, table: np.ndarray, items: Sequence[Judged]) -> np.ndarray:
        least: np.ndarray = (self.weights * table).min(0)
        return least


class Product(Combined):
    """The product of ``reward ** weight``. Raises `RewardError` for a reward below 0: two of them would make a good response."""

    name = "product"

    def combine(self, table: np.ndarray, items: Sequence[Judged]) -> np.ndarray:
        if (table < 0).any():
            row, column = np.argwhere(table < 0)[0]
            raise RewardError(
                f"reward {self.labels[row]!r} gave item {column} the value {table[row, column]:g}; a product takes rewards of "
                "at least 0 (put it into a threshold, or use weighted or minimum)"
            )
        total: np.ndarray = (table**self.weights).prod(0)
        return total


class Ensemble(Combined):
    """``mean - penalty * std`` over the terms (population standard deviation, both by weight): disagreement costs, so that a
    policy gains nothing where the rewards were never fitted (Coste et al. 2023, arXiv 2310.02743, section 3.2, with
    the standard deviation in place of the variance)."""

    name = "ensemble"

    def __init__(self, config: EnsembleConfig) -> None:
        super().__init__(config)
        self.penalty = config.penalty

    def combine(self, table: np.ndarray, items: Sequence[Judged]) -> np.ndarray:
        share = self.weights / self.weights.sum()
        mean = (share * table).sum(0)
        value: np.ndarray = mean - self.penalty * np.sqrt((share * (table - mean) ** 2).sum(0))
        return value

    def evaluate(self, items: Sequence[Judged]) -> Scored:
        scored = super().evaluate(items)
        table = np.asarray([scored.aspects[label] for label in self.labels])
        return Scored(scored.values, {**scored.aspects, "disagreement": np.std(table, axis=0).tolist()})


class Threshold(Nested):
    """``above`` where the reward is at least ``at``, ``below`` elsewhere; either may be the reward itself."""

    name = "threshold"

    def __init__(self, config: ThresholdConfig) -> None:
        super().__init__((config.reward,))
        self.config = config

    def combine(self, table: np.ndarray, items: Sequence[Judged]) -> np.ndarray:
        value = table[0]
        high = value if self.config.above is None else np.full_like(value, self.config.above)
        low = value if self.config.below is None else np.full_like(value, self.config.below)
        chosen: np.ndarray = np.where(value >= self.config.at, high, low)
        return chosen


class Normalised(Nested):
    """``(reward - mean) / std``, population statistics.

    ``group``: over the responses to one prompt within one call (Shao et al. 2024, arXiv 2402.03300, section 4.1.2);
    equal values give 0. ``running``: over every value so far, those of the call included (Zheng et al. 2023, arXiv
    2307.04964, section 5.3.1); the state is saved. ``fixed``: with the mean and std of the recipe.
    """

    name = "normalised"

    def __init__(self, config: NormalisedConfig) -> None:
        super().__init__((config.reward,))
        self.config = config
        self.count, self.mean, self.squares = 0, 0.0, 0.0  # of everything seen; squares: summed squared deviations

    def combine(self, table: np.ndarray, items: Sequence[Judged]) -> np.ndarray:
        value = table[0]
        if self.config.by == "group":
            mean, std = self._of_siblings(value, items)
        elif self.config.by == "running":
            mean, std = self._seen(value)
        else:
            mean, std = np.full_like(value, self.config.mean), np.full_like(value, self.config.std)
        varies = std > CONSTANT * np.maximum(np.abs(value), np.abs(mean))
        divided = (value - mean if self.config.centre else value) / np.where(varies, std, 1.0)
        scaled: np.ndarray = np.where(varies, divided, 0.0 if self.config.centre else value)
        return scaled if self.config.clip is None else scaled.clip(-self.config.clip, self.config.clip)

    def _of_siblings(self, value: np.ndarray, items: Sequence[Judged]) -> tuple[np.ndarray, np.ndarray]:
        groups: dict[Any, list[int]] = {}
        for position, item in enumerate(items):
            groups.setdefault(item.prompt, []).append(position)
        if items and all(len(members) == 1 for members in groups.values()):
            raise RewardError(
                f"reward {self.name!r} compares responses to one prompt, but each of the {len(items)} items has a prompt of its "
                "own; draw several samples per prompt, or set by: running"
            )
        mean, std = np.empty_like(value), np.empty_like(value)
        for members in groups.values():
            mean[members], std[members] = value[members].mean(), value[members].std()
        return mean, std

    def _seen(self, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take the values in (Chan et al. 1979, pairwise update) and return mean and std of all so far, each ``[N]``."""
        if len(value):
            total, shift = self.count + len(value), float(value.mean()) - self.mean
            self.squares += float(((value - value.mean()) ** 2).sum()) + shift**2 * self.count * len(value) / total
            self.mean += shift * len(value) / total
            self.count = total
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        return np.full_like(value, self.mean), np.full_like(value, std)

    def state(self) -> dict[str, Any]:
        seen = {"count": self.count, "mean": self.mean, "squares": self.squares}
        return super().state() | ({"seen": seen} if self.config.by == "running" else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        if "seen" in state:
            self.count, self.mean, self.squares = (state["seen"][key] for key in ("count", "mean", "squares"))
