"""Worlds from other packages, made to look alike: a Box of numbers is seen, ``reset(seed)`` decides where an episode starts,
``info["success"]`` says whether the task is solved. Nothing heavy is imported before a world is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from polyalign.errors import ConfigError
from polyalign_action.reach import reach_world

META_WORLD_STEPS = 200  # its scripted experts need 40 to 110
DIRECTIONS = 4  # that an agent of a grid world can look in


def entry(name: str) -> Callable[..., gymnasium.Env]:
    """Return what opens an environment of this name: gymnasium itself but for the worlds below."""
    return next((opener for prefix, opener in WORLDS.items() if name.startswith(prefix)), gymnasium.make)


class MetaWorld(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A task of Meta-World (Yu et al. 2019, arXiv 1910.10897) whose goal is observed: 39 numbers seen, 4 done.

    Its own ``reset`` ignores seeds; here the seed decides objects and goal. The episode ends when the task is solved.
    """

    def __init__(self, task: str, **settings: Any) -> None:
        from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as known

        if (found := f"{task}-goal-observable") not in known:
            names = ", ".join(sorted(name.removesuffix("-goal-observable") for name in known))
            raise ConfigError(f"Meta-World has no task {task!r}; it has: {names}")
        super().__init__(known[found](seed=0, **settings))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        inner: Any = self.unwrapped
        inner.seeded_rand_vec, inner._freeze_rand_vec = True, False
        if seed is not None:
            inner.seed(seed)
        return self.env.reset()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, ended, cut, info = self.env.step(action)
        return observation, float(reward), bool(ended) or bool(info["success"]), cut, info


class GridWorld(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A world of minigrid or BabyAI (Chevalier-Boisvert et al. 2019, arXiv 1810.08272): the 7 x 7 cells in view, one-hot in
    object, colour and state, then the direction looked in. The mission is `mission_of`, in words, and no part of what is seen.
    """

    def __init__(self, environment: gymnasium.Env) -> None:
        from minigrid.wrappers import OneHotPartialObsWrapper

        super().__init__(OneHotPartialObsWrapper(environment))  # type: ignore[no-untyped-call]
        cells: Any = self.env.observation_space["image"]  # type: ignore[index]
        size = int(np.prod(cells.shape)) + DIRECTIONS
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seen, info = self.env.reset(seed=seed, options=options)
        return self._flat(seen), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        seen, reward, ended, cut, info = self.env.step(action)
        return self._flat(seen), float(reward), ended, cut, info | {"success": bool(ended and reward > 0)}

    def _flat(self, seen: Any) -> np.ndarray:
        direction = np.eye(DIRECTIONS, dtype=np.float32)[seen["direction"]]
        return np.concatenate([seen["image"].astype(np.float32).reshape(-1), direction])


def mission_of(environment: gymnasium.Env) -> str:
    """Return what the environment asks for in words since its last reset; empty where it does not speak."""
    return str(getattr(environment.unwrapped, "mission", ""))


def meta_world(name: str, **settings: Any) -> gymnasium.Env:
    """Open ``MetaWorld/TASK``, such as ``MetaWorld/drawer-open-v3``. Needs ``polyalign-action[metaworld]``."""
    if name not in gymnasium.registry:
        gymnasium.register(
            name,
            entry_point="polyalign_action.worlds:made_meta_world",
            kwargs={"task": name.partition("/")[2]},
            max_episode_steps=META_WORLD_STEPS,
            disable_env_checker=True,
        )
    return gymnasium.make(name, **settings)


def made_meta_world(task: str, **settings: Any) -> gymnasium.Env:
    """Return what `meta_world` registers: gymnasium takes no wrapper class as an entry point."""
    return MetaWorld(task, **settings)


def grid_world(name: str, **settings: Any) -> gymnasium.Env:
    """Open an environment of minigrid or BabyAI by its own id. Needs ``polyalign-action[minigrid]``."""
    import minigrid  # noqa: F401  # registers its ids

    return GridWorld(gymnasium.make(name, disable_env_checker=True, **settings))


WORLDS: dict[str, Callable[..., gymnasium.Env]] = {
    "Reach/": reach_world,
    "MetaWorld/": meta_world,
    "BabyAI-": grid_world,
    "MiniGrid-": grid_world,
}
