"""Tiny policies for `reach`, of several bodies by UniAct and of one by action tokens: what the cells test trains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from polyalign.policies.base import Policy
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.records.schema import Record
from polyalign_action import action_tokens, uniact
from polyalign_action.action_tokens_config import ActionTokensConfig
from polyalign_action.episodes import candidate_of, record_of
from polyalign_action.fixture import InMemory
from polyalign_action.reach import COLOURS, VIEW
from polyalign_action.reach_demonstrations import demonstrated
from polyalign_action.tasks import Task
from polyalign_action.uniact_config import UniActConfig

BODIES = ("Cursor", "Keys")


def records(bodies: Sequence[str], media: InMemory) -> list[Record]:
    """Return four pairs, in which going where the mission says beats going elsewhere, then two grids: the mission of one episode
    is wrong for the other. Bodies take turns."""
    found = []
    for number in range(4):
        (task, right), (_, wrong) = (demonstrated(bodies[number % len(bodies)], number, astray) for astray in (0, 1))
        found.append(record_of(f"pair-{number}", task, [right, wrong], media.add))
    for number in range(2):
        (task, first), (_, second) = (demonstrated(bodies[number % len(bodies)], 10 + number, astray) for astray in (0, 1))
        named = next(colour for colour in COLOURS if colour in task.instruction)
        other = COLOURS[(COLOURS.index(named) + 1) % len(COLOURS)]
        asked = [task, Task(task.environment, task.seed, instruction=task.instruction.replace(named, other))]
        answers = [candidate_of(episode, media.add).parts for episode in (first, second)]
        found.append(grid(f"grid-{number}", [mission.prompt() for mission in asked], answers))
    return found


def uniact_policy(value_head: bool = False) -> Policy:
    """Return a fresh policy of two bodies, told where to go by numbers and by keys; the same each time."""
    config = UniActConfig(
        embodiments=tuple(f"Reach/{body}" for body in BODIES), view=VIEW, words=16, hidden=(16,), head_hidden=(16,), codes=8,
        code_size=8, temperature=(1.0, 1.0), value_head=value_head, max_steps=12,
    )  # fmt: skip
    return uniact.build(config)


def tokens_policy(body: str, value_head: bool = False) -> Policy:
    """Return a fresh language model that moves one body; the same each time."""
    config = ActionTokensConfig(
        base="fresh:2x32", environment=f"Reach/{body}", bins=16, observation_bins=32, max_length=96, max_response=48,
        value_head=value_head,
    )  # fmt: skip
    return action_tokens.build(config)


def uniact_fixture() -> PolicyFixture:
    media = InMemory()
    made = records(BODIES, media)
    return PolicyFixture(uniact_policy, made, media, 3e-3, with_values=partial(uniact_policy, value_head=True))


def tokens_fixture() -> tuple[PolicyFixture, ...]:
    """Return one fixture per kind of action: real-valued, then discrete."""
    found = []
    for body in BODIES:
        media = InMemory()
        made, build = records([body], media), partial(tokens_policy, body)
        found.append(PolicyFixture(build, made, media, 1e-3, with_values=partial(build, value_head=True)))
    return tuple(found)
