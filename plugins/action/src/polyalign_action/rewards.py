"""What an episode was worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from polyalign.errors import MediaError
from polyalign.rewards.base import Judged, Reward
from polyalign_action.config import ReturnConfig
from polyalign_action.trajectory import Trajectory


class ReturnReward(Reward):
    """The (discounted) sum of the rewards that the environment paid."""

    name = "return"

    def __init__(self, config: ReturnConfig | None = None) -> None:
        self.config = config or ReturnConfig()

    def score(self, items: Sequence[Judged]) -> list[float]:
        """Return one return per trajectory. Raises `MediaError` for responses that are none."""
        return [trajectory.discounted(self.config.discount) for trajectory in trajectories_of(items, self.name)]

    def per_decision(self, items: Sequence[Judged]) -> list[Sequence[float]] | None:
        """Return what each decision was paid, the reward of step t multiplied by ``discount ** t``: the return adds them up.
        None if any of the trajectories cannot tell (`Trajectory.paid`)."""
        trajectories = trajectories_of(items, self.name)
        if any(trajectory.paid == () for trajectory in trajectories):
            return None
        return [self._paid(trajectory) for trajectory in trajectories]

    def _paid(self, trajectory: Trajectory) -> list[float]:
        steps = [float(reward) * self.config.discount**step for step, reward in enumerate(trajectory.rewards)]
        if trajectory.paid is None:
            return steps
        assert sum(trajectory.paid) == len(steps), f"{sum(trajectory.paid)} steps are paid, of {len(steps)}"
        rest = iter(steps)
        return [sum(islice(rest, count)) for count in trajectory.paid]


def trajectories_of(items: Sequence[Judged], reward: str) -> list[Trajectory]:
    """Return the responses of the items. Raises `MediaError` naming the reward for anything but trajectories."""
    strange = [item for item in items if not isinstance(item.output, Trajectory)]
    if strange:
        raise MediaError(f"the reward {reward!r} judges trajectories; found {type(strange[0].output).__name__}")
    return [item.output for item in items]
