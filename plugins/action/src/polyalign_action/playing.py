"""Rollouts of policies that act by an action head: episodes played side by side, each with randomness of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import gymnasium
import torch
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.base import Actions, Rollout, Rollouts
from polyalign.policies.continuous import ActionHead
from polyalign.randomness import keyed_generator, keyed_seed
from polyalign.records.schema import Message
from polyalign_action.environments import Spaces, open_environment, play, time_limit
from polyalign_action.tasks import Task, task_of

Playing = tuple[tuple[Message, ...], int, Task]  # prompt, number of the rollout under it, task
Outputs = Callable[[Tensor, Sequence[int], int], Tensor]  # observations [n, O] of these episodes at this step -> head outputs


@dataclass(frozen=True)
class Decoding:
    """``greedy``: take the likeliest action. ``batch_size``: episodes played at once; it changes speed and memory only."""

    greedy: bool = False
    batch_size: int = 64

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Decoding:
        unknown = sorted(set(settings) - {"greedy", "batch_size"})
        if unknown:
            raise ConfigError(f"unknown decoding setting {unknown[0]!r} of an action policy; known: batch_size, greedy")
        decoding = cls(**settings)
        if decoding.batch_size < 1:
            raise ConfigError(f"batch_size={decoding.batch_size} must be at least 1")
        return decoding


class Stage(Protocol):
    """Where a policy can act."""

    @property
    def home(self) -> str:
        """Return which environments it was built for, for messages."""
        ...

    def spaces_in(self, environment: str) -> Spaces:
        """Return the spaces that it acts in there. Raises `ConfigError` where it cannot."""
        ...


class Player(Stage, Protocol):
    """What acts: the device it computes on, the step at which it cuts episodes, and per environment a head and its inputs."""

    @property
    def device(self) -> torch.device: ...

    @property
    def cut(self) -> int | None: ...

    def head_in(self, environment: str) -> ActionHead: ...

    def outputs_for(self, tasks: Sequence[Task]) -> Outputs:
        """Return what gives the head's inputs in episodes of these tasks, all of one environment."""
        ...


@torch.no_grad()
def played(
    player: Player, prompts: Sequence[tuple[Message, ...]], samples_per_prompt: int, seed: int, decoding: Decoding
) -> Rollouts:
    """Return one episode per rollout, prompt-major; ``output`` is its `Trajectory`, ``old_log_probs`` ``[T]``.

    A task's own seed resets the environment, so that the rollouts of one prompt start alike and differ by their actions.
    """
    return side_by_side(
        player,
        prompts,
        samples_per_prompt,
        decoding.batch_size,
        lambda jobs, pool: _episodes(player, jobs, seed, decoding, pool),
    )


def side_by_side(
    player: Stage,
    prompts: Sequence[tuple[Message, ...]],
    samples_per_prompt: int,
    batch_size: int,
    episodes: Callable[[Sequence[Playing], Sequence[gymnasium.Env]], list[Rollout]],
) -> Rollouts:
    """Return what ``episodes`` makes of jobs of one kind of environment, so many at a time, prompt-major. Environments are opened
    as they are needed, used again, and closed."""
    jobs = [(prompt, number, task_of(prompt)) for prompt in prompts for number in range(samples_per_prompt)]
    places: dict[str, list[int]] = {}
    for place, (_, _, task) in enumerate(jobs):
        places.setdefault(task.environment, []).append(place)
    found: dict[int, Rollout] = {}
    with ExitStack() as stack:
        for name, mine in places.items():
            pool: list[gymnasium.Env] = []
            for start in range(0, len(mine), batch_size):
                together = mine[start : start + batch_size]
                while len(pool) < len(together):
                    pool.append(_opened(player, name, stack))
                found |= zip(together, episodes([jobs[place] for place in together], pool[: len(together)]))
    return tuple(found[place] for place in range(len(jobs)))


def start_of(task: Task, number: int, seed: int) -> int:
    """Return what resets the environment: the task's own seed, or one keyed by the rollout's number."""
    return keyed_seed(seed, "start", task.text, number) if task.seed is None else task.seed


def _opened(player: Stage, name: str, stack: ExitStack) -> gymnasium.Env:
    environment = stack.enter_context(closing(open_environment(name)))
    if (found := Spaces.of(environment)) != (expected := player.spaces_in(name)):
        raise ConfigError(f"a prompt names {name!r} with {found}; the policy was built for {player.home!r}: {expected}")
    return environment


def _episodes(
    player: Player, jobs: Sequence[Playing], seed: int, decoding: Decoding, environments: Sequence[gymnasium.Env]
) -> list[Rollout]:
    """Play one episode per job, all in one kind of environment."""
    tasks = [task for _, _, task in jobs]
    head, device = player.head_in(tasks[0].environment), player.device
    limits = [time_limit(environment, player.cut) for environment in environments]
    starts = [start_of(task, number, seed) for _, number, task in jobs]
    keys = [keyed_generator(seed, "act", task.text, number) for _, number, task in jobs]
    noise = [head.noise(limit, key).to(device) for limit, key in zip(limits, keys)]
    outputs_of = player.outputs_for(tasks)
    log_probs: list[list[Tensor]] = [[] for _ in jobs]

    def act(observations: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        outputs = outputs_of(observations.to(device), numbers, step)
        drawn = torch.stack([noise[number][step] for number in numbers])
        actions = head.mode(outputs) if decoding.greedy else head.draw(outputs, drawn)
        for number, value in zip(numbers, head.log_probs(outputs, actions)):
            log_probs[number].append(value)
        return actions

    trajectories = play(environments, starts, limits, player.spaces_in(tasks[0].environment), act)
    recorded = {**asdict(decoding), "seed": seed}
    return [
        Rollout(
            prompt,
            trajectory,
            (Actions(torch.from_numpy(trajectory.actions).view(len(trajectory), -1)),),
            torch.stack(mine).cpu(),
            recorded,
        )
        for (prompt, _, _), trajectory, mine in zip(jobs, trajectories, log_probs)
    ]
