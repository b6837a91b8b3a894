"""What an action policy is asked: an environment, where it starts, and a goal. Written in a prompt as one line of text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from polyalign.errors import RecordError
from polyalign.records.schema import Message, TextPart, text_of

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
LINE = re.compile(rf"(?P<environment>[\w:./-]+?)(?:, seed (?P<seed>\d+))?(?:, goal (?P<goal>{NUMBER}(?: {NUMBER})*))?", re.I)


@dataclass(frozen=True)
class Task:
    """``environment``: a gymnasium id. ``seed`` resets it; None: every rollout starts somewhere else. ``goal``: numbers that
    join every observation."""

    environment: str
    seed: int | None = None
    goal: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """Return the task as a prompt says it: ``CartPole-v1, seed 7, goal 1.0``."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.environment}{seed}" + (f", goal {' '.join(map(repr, self.goal))}" if self.goal else "")

    def prompt(self) -> tuple[Message, ...]:
        return (Message(role="user", parts=(TextPart(text=self.text),)),)


def task_of(prompt: Sequence[Message]) -> Task:
    """Return the task that the prompt's last message names. Raises `RecordError`."""
    text = text_of(prompt[-1].parts).strip()
    found = LINE.fullmatch(text)
    if found is None:
        raise RecordError(
            f"{text[:80]!r} names no task; expected 'ENVIRONMENT[, seed N][, goal NUMBERS]', as in 'CartPole-v1, seed 7'"
        )
    seed = None if found["seed"] is None else int(found["seed"])
    return Task(found["environment"], seed, tuple(map(float, (found["goal"] or "").split())))
