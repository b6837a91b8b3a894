"""Builds datasets/manipulation: four scripted episodes of one task from one start, ranked by what the environment says of them.

`expert` is Meta-World's scripted policy, or BabyAI's bot. `perturbed` is the expert with noise added to its actions (random
actions, in BabyAI), `slow` takes a fraction of its step (idles, in BabyAI), `wrong-goal` goes for a place beside the goal (for
another object). The label is not the script's but the environment's: success counts, and among successes the quicker one wins;
failures tie.

Deterministic up to the versions of the simulators.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyalign.records.parquet import write_parquet
from polyalign.records.schema import Provenance, Record
from polyalign.records.store import MediaStore
from polyalign_action.environments import Spaces, open_environment, play
from polyalign_action.episodes import record_of
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory
from polyalign_action.worlds import mission_of

ARMS = "MetaWorld/"
# Split: environment, steps at most, seeds. One split for each kind of spaces, as a policy has one.
SPLITS = {
    "drawer-open": ("MetaWorld/drawer-open-v3", 120, range(0, 96)),
    "drawer-open-test": ("MetaWorld/drawer-open-v3", 120, range(1000, 1024)),
    "button-press": ("MetaWorld/button-press-topdown-v3", 120, range(0, 96)),
    "button-press-test": ("MetaWorld/button-press-topdown-v3", 120, range(1000, 1024)),
    "go-to": ("BabyAI-GoToLocal-v0", 64, range(0, 240)),
    "go-to-test": ("BabyAI-GoToLocal-v0", 64, range(1000, 1048)),
}
SCRIPTS = ("expert", "perturbed", "slow", "wrong-goal")
IDLE = 6  # BabyAI's action that does nothing here
Act = Callable[[torch.Tensor, Any, int], torch.Tensor]


def arm_script(task: str, seed: int, script: str) -> Act:
    """Return what moves the arm: actions ``[1, 4]`` of observations ``[1, 39]``."""
    from metaworld.policies import ENV_POLICY_MAP

    expert, draw = ENV_POLICY_MAP[task](), np.random.default_rng([seed, SCRIPTS.index(script)])
    aside = draw.normal(size=3)
    aside *= draw.uniform(0.1, 0.25) / np.linalg.norm(aside)  # metres
    noise = draw.uniform(0.3, 1.2) if script == "perturbed" else 0.05
    pace = np.array([draw.uniform(0.2, 0.5) if script == "slow" else 1.0] * 3 + [1.0])

    def act(seen: torch.Tensor, numbers: Any, step: int) -> torch.Tensor:
        view = seen[0].double().numpy().copy()
        if script == "wrong-goal":
            view[4:7] += aside  # where the handle or button seems to be
        action = np.clip(expert.get_action(view), -1, 1) * pace + draw.normal(0, noise, 4)
        return torch.from_numpy(np.clip(action, -1, 1).astype(np.float32))[None]

    return act


def grid_script(environment: Any, seed: int, script: str) -> Act:
    """Return what walks the grid: an action ``[1]``. The bot plans in the environment that is played; for the wrong goal, in one
    whose mission names another object of the same room."""
    from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc
    from minigrid.utils.baby_ai_bot import BabyAIBot

    draw = random.Random(f"{seed} {script}")
    careless = draw.uniform(0.15, 0.5) if script == "perturbed" else 0.0
    idle = draw.uniform(0.3, 0.6) if script == "slow" else 0.0
    inner, bot, last = environment.unwrapped, None, None

    def act(seen: torch.Tensor, numbers: Any, step: int) -> torch.Tensor:
        nonlocal bot, last
        if bot is None:
            asked = inner.instrs
            if script == "wrong-goal":
                inner.instrs = another(inner, draw, GoToInstr, ObjDesc)
            bot = BabyAIBot(inner)
            inner.instrs = asked
        action = int(bot.replan(last)) if bot.stack else IDLE  # it has arrived where nobody sent it
        if draw.random() < careless:
            action = draw.choice((0, 1, 2))
        last = IDLE if draw.random() < idle else action
        return torch.tensor([last])

    return act


def another(inner: Any, draw: random.Random, instruction: Any, description: Any) -> Any:
    """Return an instruction to go to an object that the mission does not mean."""
    asked = inner.instrs.desc
    others = sorted(
        {(cell.type, cell.color) for cell in inner.grid.grid if cell is not None and cell.type in ("box", "ball", "key")}
        - {(asked.type, asked.color)}
    )
    chosen = instruction(description(*draw.choice(others)))
    chosen.reset_verifier(inner)
    return chosen


def worth(episode: Trajectory, steps: int) -> float:
    """Return 0 for a failure, else BabyAI's ``1 - 0.9 steps / limit``."""
    return 1 - 0.9 * len(episode) / steps if episode.success else 0.0


def record(name: str, seed: int, steps: int, environment: Any, make: Callable[[str], Act], store: MediaStore) -> Record:
    order = random.Random(f"{name} {seed}").sample(SCRIPTS, len(SCRIPTS))
    episodes, words = [], name.partition("/")[2].removesuffix("-v3").replace("-", " ")
    for script in order:
        episodes += play([environment], [seed], [steps], Spaces.of(environment), make(script))
        words = mission_of(environment) or words
    found = record_of(
        f"{name}-{seed}", Task(name, seed, instruction=words), episodes, store.add, [worth(one, steps) for one in episodes]
    )
    candidates = [
        candidate.model_copy(update={"producer": script, "conditions": {"success": bool(episode.success)}})
        for candidate, script, episode in zip(found.candidates, order, episodes)
    ]
    provenance = Provenance(source="tools/builders/manipulation.py", method="rule: success, then speed, by the environment")
    return found.model_copy(update={"candidates": tuple(candidates), "provenance": provenance, "licence": "Apache-2.0"})


def records(name: str, steps: int, seeds: range, store: MediaStore) -> Iterator[Record]:
    with closing(open_environment(name)) as environment:
        for seed in seeds:
            if name.startswith(ARMS):
                make = partial(arm_script, name.removeprefix(ARMS), seed)
            else:
                make = partial(grid_script, environment, seed)
            yield record(name, seed, steps, environment, make, store)


def main() -> None:
    warnings.simplefilter("ignore")  # Meta-World's own: its experts ask for more than the actions' range
    folder = Path(__file__).resolve().parents[2] / "datasets" / "manipulation"
    folder.mkdir(exist_ok=True)
    for split, (name, steps, seeds) in SPLITS.items():
        with tempfile.TemporaryDirectory() as place:
            store = MediaStore(place)
            found = list(records(name, steps, seeds, store))
            write_parquet(folder / f"{split}.parquet", found, store)
        print(f"{split}: {len(found)} records, {(folder / f'{split}.parquet').stat().st_size / 1e6:.1f} MB")
        for script in SCRIPTS:
            wins = [one.conditions["success"] for record in found for one in record.candidates if one.producer == script]
            print(f"  {script:12} solved {sum(map(bool, wins))} of {len(wins)}")


if __name__ == "__main__":
    sys.exit(main())
