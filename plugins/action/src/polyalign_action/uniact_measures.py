"""What UniAct is judged by: how much of experts' actions it explains, and whether bodies share their codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from polyalign.errors import RecordError
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory

if TYPE_CHECKING:
    from polyalign_action.uniact import UniActPolicy


@torch.no_grad()
def explained(policy: UniActPolicy, episodes: Sequence[tuple[Task, Trajectory]]) -> float:
    """Return R^2 of the likeliest action against the one taken, over all steps and dimensions of one body's episodes; for
    discrete actions the share that agrees."""
    (name,) = {task.environment for task, _ in episodes}
    outputs_of, head = policy.outputs_for([task for task, _ in episodes]), policy.head_in(name)
    predicted = np.concatenate(
        [
            head.mode(outputs_of(torch.from_numpy(episode.observations[:-1]), [number] * len(episode), 0)).numpy()
            for number, (_, episode) in enumerate(episodes)
        ]
    )
    taken = np.concatenate([episode.actions for _, episode in episodes])
    if taken.ndim == 1:
        return float((predicted == taken - policy.spaces_in(name).first).mean())
    return float(1 - np.square(predicted - taken).sum() / np.square(taken - taken.mean(0)).sum())


@torch.no_grad()
def likeliest_codes(policy: UniActPolicy, tasks: Sequence[Task], observations: torch.Tensor) -> torch.Tensor:
    """Return the code of each task in the state observed, ``[n]`` of ``[n, O]``."""
    words = torch.stack([policy.collator.asked(task) for task in tasks])
    _, log_probs = policy.universal(observations[:, : policy.config.view], words)
    return log_probs.argmax(-1)


def agreement(policy: UniActPolicy, one: Sequence[tuple[Task, Trajectory]], other: Sequence[tuple[Task, Trajectory]]) -> float:
    """Return in which share of situations two bodies choose the same code: the starts of episodes of the same seeds."""
    if [task.seed for task, _ in one] != [task.seed for task, _ in other]:
        raise RecordError("agreement compares bodies in the same situations; give episodes of the same seeds, in order")
    codes = [
        likeliest_codes(
            policy,
            [task for task, _ in episodes],
            torch.stack([torch.from_numpy(episode.observations[0][: policy.config.view]) for _, episode in episodes]),
        )
        for episodes in (one, other)
    ]
    return float((codes[0] == codes[1]).float().mean())
