"""What an action policy is asked: an environment, where it starts, a goal or an instruction. One line of text in a prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from polyalign.errors import RecordError
from polyalign.records.schema import Message, TextPart, text_of

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
LINE = re.compile(
    rf"(?P<environment>[\w:./-]+?)(?:, seed (?P<seed>\d+))?(?:, goal (?P<goal>{NUMBER}(?: {NUMBER})*))?"
    r"(?:: (?P<instruction>\S.*))?",
    re.I,
)


@dataclass(frozen=True)
class Task:
    """``environment``: a gymnasium id. ``seed`` resets it; None: every rollout starts somewhere else. ``goal``: numbers that
    join every observation. ``instruction``: what to do, in words."""

    environment: str
    seed: int | None = None
    goal: tuple[float, ...] = ()
    instruction: str = ""

    @property
    def text(self) -> str:
        """Return the task as a prompt says it: ``CartPole-v1, seed 7, goal 1.0``, ``BabyAI-GoToLocal-v0: go to the red ball``."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        goal = f", goal {' '.join(map(repr, self.goal))}" if self.goal else ""
        return f"{self.environment}{seed}{goal}" + (f": {self.instruction}" if self.instruction else "")

    def prompt(self) -> tuple[Message, ...]:
        return (Message(role="user", parts=(TextPart(text=self.text),)),)


def task_of(prompt: Sequence[Message]) -> Task:
    """Return the task that the prompt's last message names. Raises `RecordError`."""
    text = text_of(prompt[-1].parts).strip()
    found = LINE.fullmatch(text)
    if found is None:
        raise RecordError(
            f"{text[:80]!r} names no task; expected 'ENVIRONMENT[, seed N][, goal NUMBERS][: WORDS]', as in 'CartPole-v1, seed 7'"
        )
    seed = None if found["seed"] is None else int(found["seed"])
    goal = tuple(map(float, (found["goal"] or "").split()))
    return Task(found["environment"], seed, goal, found["instruction"] or "")
