"""What an episode was worth."""

from __future__ import annotations

from collections.abc import Sequence

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

    def per_decision(self, items: Sequence[Judged]) -> list[Sequence[float]]:
        """Return what each action was paid, multiplied by ``discount ** step``: the return adds them up."""
        discount = self.config.discount
        return [
            [float(reward) * discount**step for step, reward in enumerate(trajectory.rewards)]
            for trajectory in trajectories_of(items, self.name)
        ]


def trajectories_of(items: Sequence[Judged], reward: str) -> list[Trajectory]:
    """Return the responses of the items. Raises `MediaError` naming the reward for anything but trajectories."""
    strange = [item for item in items if not isinstance(item.output, Trajectory)]
    if strange:
        raise MediaError(f"the reward {reward!r} judges trajectories; found {type(strange[0].output).__name__}")
    return [item.output for item in items]
