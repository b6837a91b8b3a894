"""A tiny UniAct policy of two bodies, told where to go by numbers and by keys: what the cells test trains."""

from __future__ import annotations

from functools import partial

from polyalign.policies.base import Policy
from polyalign.policies.fixture import PolicyFixture
from polyalign.records.schema import Comparison, Record
from polyalign_action.episodes import candidate_of, record_of
from polyalign_action.fixture import InMemory
from polyalign_action.reach import COLOURS, VIEW
from polyalign_action.reach_demonstrations import demonstrated
from polyalign_action.tasks import Task
from polyalign_action.uniact import build
from polyalign_action.uniact_config import UniActConfig

BODIES = ("Cursor", "Keys")


def tiny(value_head: bool = False) -> Policy:
    """Return a fresh policy, the same each time."""
    config = UniActConfig(
        embodiments=tuple(f"Reach/{body}" for body in BODIES),
        view=VIEW,
        words=16,
        hidden=(16,),
        head_hidden=(16,),
        codes=8,
        code_size=8,
        temperature=(1.0, 1.0),
        value_head=value_head,
        max_steps=12,
    )
    return build(config)


def fixture() -> PolicyFixture:
    """Return four pairs, in which going where the mission says beats going elsewhere, then a grid per body: the mission of one
    episode is wrong for the other."""
    media, records = InMemory(), []
    for number in range(4):
        (task, right), (_, wrong) = (demonstrated(BODIES[number % 2], number, astray) for astray in (0, 1))
        records.append(record_of(f"pair-{number}", task, [right, wrong], media.add))
    for number, body in enumerate(BODIES):
        (task, first), (_, second) = (demonstrated(body, 10 + number, astray) for astray in (0, 1))
        named = next(colour for colour in COLOURS if colour in task.instruction)
        other = COLOURS[(COLOURS.index(named) + 1) % len(COLOURS)]
        asked = [task, Task(task.environment, task.seed, instruction=task.instruction.replace(named, other))]
        cells = [(mission, episode) for mission in asked for episode in (first, second)]
        better_worse = [(0, 1), (3, 2), (0, 2), (3, 1)]  # rows (one mission), then columns (one episode)
        records.append(
            Record(
                id=f"grid-{number}",
                candidates=tuple(candidate_of(episode, media.add, prompt=mission.prompt()) for mission, episode in cells),
                feedback=tuple(Comparison(ranking=((better,), (worse,))) for better, worse in better_worse),
                tags=("grid",),
            )
        )
    return PolicyFixture(tiny, records, media, 3e-3, with_values=partial(tiny, value_head=True))
