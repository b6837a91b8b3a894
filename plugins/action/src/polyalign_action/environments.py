"""Gymnasium environments: which spaces a policy can have, and playing several episodes side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign_action.trajectory import Trajectory
from polyalign_action.worlds import entry

Act = Callable[[Tensor, Sequence[int], int], Tensor]  # observations [n, O] of these episodes at this step -> actions


@dataclass(frozen=True)
class Spaces:
    """``observation``: how many numbers. ``actions``: how many there are, or how many numbers one has. ``first``: what the
    environment calls the first of discrete actions. ``low`` and ``high`` bound real-valued ones."""

    observation: int
    actions: int
    discrete: bool
    first: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @classmethod
    def of(cls, environment: gymnasium.Env) -> Spaces:
        """Return the spaces. Raises `ConfigError` for kinds that no action head fits."""
        name = environment.spec.id if environment.spec else type(environment).__name__
        seen, done = environment.observation_space, environment.action_space
        if not isinstance(seen, gymnasium.spaces.Box):
            raise ConfigError(
                f"{name!r} is observed as {seen}; expected a Box of numbers: wrap it with gymnasium's FlattenObservation"
            )
        size = int(np.prod(seen.shape))
        if isinstance(done, gymnasium.spaces.Discrete):
            return cls(size, int(done.n), discrete=True, first=int(done.start))
        if isinstance(done, gymnasium.spaces.Box) and len(done.shape) == 1:
            low, high = (tuple(float(bound) for bound in side) for side in (done.low, done.high))
            return cls(size, done.shape[0], discrete=False, low=low, high=high)
        raise ConfigError(f"{name!r} is acted on by {done}; expected Discrete actions or a Box of one dimension")

    def half_widths(self) -> list[float]:
        """Return half the width of each action's range; 1 where it has no bounds."""
        return [(high - low) / 2 if np.isfinite(high - low) else 1.0 for low, high in zip(self.low, self.high)]


def open_environment(name: str, **settings: object) -> gymnasium.Env:
    """Return a fresh environment; ``settings`` are gymnasium's own, such as ``render_mode``. Raises `ConfigError` with
    gymnasium's reason."""
    try:
        return entry(name)(name, **settings)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        raise ConfigError(
            f"gymnasium cannot make {name!r}: {error}. `python -c 'import gymnasium; gymnasium.pprint_registry()'` lists ids; "
            "'MODULE:ID' imports a module that registers its own"
        ) from error


def time_limit(environment: gymnasium.Env, max_steps: int | None) -> int:
    """Return the step at which an episode is cut at the latest."""
    registered = environment.spec.max_episode_steps if environment.spec else None
    limits = [limit for limit in (registered or getattr(environment.unwrapped, "max_steps", None), max_steps) if limit]
    if not limits:
        name = environment.spec.id if environment.spec else environment
        raise ConfigError(f"{name!r} has no time limit of its own; set policy.max_steps")
    return min(limits)


def play(
    environments: Sequence[gymnasium.Env], seeds: Sequence[int], limits: Sequence[int], spaces: Spaces, act: Act
) -> list[Trajectory]:
    """Play one episode in each environment, acting in all of them at once; those that have ended wait.

    ``act(observations, numbers, step)`` is given the observations ``[n, O]`` of the episodes that still run and their numbers,
    and returns an action each: ``[n]`` indices from 0, or ``[n, A]`` before clipping.
    """
    seen = [[_flat(env.reset(seed=seed)[0])] for env, seed in zip(environments, seeds)]
    done: list[list[np.ndarray]] = [[] for _ in environments]
    paid: list[list[float]] = [[] for _ in environments]
    terminated = [False] * len(environments)
    success: list[bool | None] = [None] * len(environments)
    running, step = list(range(len(environments))), 0
    while running:
        observations = torch.from_numpy(np.stack([seen[number][-1] for number in running]))
        actions = act(observations, running, step).cpu().numpy()
        step += 1
        still = []
        for number, action in zip(running, actions):
            given = int(action) + spaces.first if spaces.discrete else np.clip(action, spaces.low, spaces.high).astype(np.float32)
            observation, reward, ended, cut, info = environments[number].step(given)
            seen[number].append(_flat(observation))
            done[number].append(np.int64(given) if spaces.discrete else action)
            paid[number].append(float(reward))
            terminated[number] = bool(ended)
            if (solved := info.get("success", info.get("is_success"))) is not None:
                success[number] = bool(solved) or bool(success[number])
            if not (ended or cut or step >= limits[number]):
                still.append(number)
        running = still
    return [
        Trajectory(
            environment=environments[number].spec.id if environments[number].spec else "",
            seed=seeds[number],
            observations=np.stack(seen[number]),
            actions=np.stack(done[number]),
            rewards=np.asarray(paid[number], np.float32),
            terminated=terminated[number],
            success=success[number],
        )
        for number in range(len(environments))
    ]


def _flat(observation: np.ndarray) -> np.ndarray:
    return np.asarray(observation, np.float32).reshape(-1)
