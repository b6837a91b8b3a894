"""Tiny policies, of discrete and of real-valued actions, with episodes played by scripts: what the cells test trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from polyalign.errors import MediaError
from polyalign.policies.base import Policy
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.records.schema import MediaRef, Record
from polyalign.records.store import reference_to
from polyalign_action.config import ActionConfig
from polyalign_action.environments import Spaces, open_environment, play
from polyalign_action.episodes import candidate_of, record_of
from polyalign_action.policy import build
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory

Script = Callable[[Tensor], Tensor]  # observations [1, O] -> actions


class InMemory:
    """Media without a folder."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def add(self, data: bytes, modality: str, mime: str) -> MediaRef:
        ref = reference_to(data, modality, mime)
        self.data[ref.sha256] = data
        return ref

    def read(self, ref: MediaRef) -> bytes:
        return self.data[ref.sha256]

    def path(self, ref: MediaRef) -> Path:
        raise MediaError("these trajectories are in memory only; use read()")


def scripted(name: str, script: Script, seed: int, steps: int) -> Trajectory:
    """Return the episode that the script plays from ``seed``, cut after ``steps``."""
    with closing(open_environment(name)) as environment:
        (episode,) = play([environment], [seed], [steps], Spaces.of(environment), lambda seen, numbers, step: script(seen))
    return episode


def records(name: str, media: InMemory, plus: Script, minus: Script, neither: Script) -> list[Record]:
    """Return four pairs, in which goal 1 prefers ``plus`` to ``neither``, then two grids: goal -1 asks for ``minus``."""
    found = []
    for number in range(4):
        pair = [scripted(name, script, number, steps) for script, steps in ((plus, 6 + number), (neither, 5 + number))]
        found.append(record_of(f"pair-{number}", Task(name, number, (1.0,)), pair, media.add, returns=(1.0, 0.0)))
    for number in range(2):
        episodes = [scripted(name, script, 10 + number, 5) for script in (plus, minus)]
        asked = [Task(name, 10 + number, (goal,)).prompt() for goal in (1.0, -1.0)]
        found.append(grid(f"grid-{number}", asked, [candidate_of(episode, media.add).parts for episode in episodes]))
    return found


def cart_pole(value_head: bool = False) -> Policy:
    """Return a fresh policy over CartPole, the same each time."""
    return build(ActionConfig(environment="CartPole-v1", hidden=(16,), goal=1, value_head=value_head, max_steps=20))


def pendulum(value_head: bool = False) -> Policy:
    """Return a fresh policy over Pendulum, the same each time."""
    return build(ActionConfig(environment="Pendulum-v1", hidden=(16,), goal=1, value_head=value_head, max_steps=20))


def remembering(value_head: bool = False) -> Policy:
    """Return a fresh policy over Pendulum that reads its last three observations, the same each time."""
    return build(
        ActionConfig(
            environment="Pendulum-v1",
            network="transformer",
            hidden=(16,),
            heads=2,
            history=3,
            goal=1,
            value_head=value_head,
            max_steps=20,
        )
    )


def pendulums(media: InMemory) -> list[Record]:
    """Return records of Pendulum, turned one way, the other way, or swung a little."""

    def torque(strength: float) -> Script:
        return lambda seen: torch.full((1, 1), strength)

    def swing(seen: Tensor) -> Tensor:
        return 0.3 * torch.sign(seen[:, 2:])

    return records("Pendulum-v1", media, torque(1.0), torque(-1.0), swing)


def fixture() -> tuple[PolicyFixture, ...]:
    """Return what the cells test needs: CartPole (two actions), Pendulum (a torque), and Pendulum by a transformer."""
    media, swung = InMemory(), InMemory()

    def push(action: int) -> Script:
        return lambda seen: torch.full((1,), action)

    def balance(seen: Tensor) -> Tensor:
        return (seen[:, 2] + seen[:, 3] > 0).long()

    carts, swings = records("CartPole-v1", media, push(1), push(0), balance), pendulums(swung)
    return (
        PolicyFixture(cart_pole, carts, media, 3e-4, with_values=partial(cart_pole, value_head=True)),
        PolicyFixture(pendulum, swings, swung, 3e-4, with_values=partial(pendulum, value_head=True)),
        PolicyFixture(remembering, swings, swung, 3e-4, with_values=partial(remembering, value_head=True)),
    )
