"""Written-out additions of digits, and people who forget a carry now and then: the problems of the proof easy-to-hard.

A problem of level L has L steps: ``a7b8c5`` (7 + 8 + 5) is of level 2, and its solution the lines ``b8=15`` and ``c5=20``: the
next number by its letter, and the sum so far. Whoever writes the corpus forgets the carry of a step that has one with
probability `FORGETS`, and goes on with what they wrote: ``b8=5``, ``c5=10``. One carry is more often right than wrong, so that
the most frequent answer to an easy problem is right; of three carries, one is most often forgotten, and the most frequent answer
to a hard problem is wrong by ten.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from polyalign.records.schema import Candidate, Message, Record, Segment, TextPart

FORGETS = 0.4
EASY, HARD = (1, 2, 3), (6,)
LETTERS = "abcdefg"


@dataclass(frozen=True)
class Addition:
    digits: tuple[int, ...]

    @property
    def level(self) -> int:
        return len(self.digits) - 1

    @property
    def text(self) -> str:
        return "".join(map("{}{}".format, LETTERS, self.digits)) + "\n"

    @property
    def answer(self) -> int:
        return sum(self.digits)

    def prompt(self) -> tuple[Message, ...]:
        return (Message(role="user", parts=(TextPart(text=self.text),)),)

    def written(self, draw: random.Random, forgets: float) -> str:
        """Return a solution by somebody who forgets each carry with this probability."""
        lines, total = [], self.digits[0]
        for letter, digit in zip(LETTERS[1:], self.digits[1:]):
            result = total + digit
            if total % 10 + digit >= 10 and draw.random() < forgets:
                result -= 10
            lines.append(f"{letter}{digit}={result}")
            total = result
        return "\n".join(lines)

    def judged(self, solution: str) -> list[bool]:
        """Return whether each line is right in itself: it names the next number, and adds it to the sum of the line before."""
        found, total = [], str(self.digits[0])
        for number, line in enumerate(solution.splitlines(), 1):
            named, _, result = line.partition("=")
            known = number <= self.level and named == f"{LETTERS[number]}{self.digits[number]}" and total.isdecimal()
            found.append(known and result == str(int(total) + self.digits[number]))
            total = result
        return found


def problems(levels: Sequence[int], count: int, seed: str) -> list[Addition]:
    """Return distinct problems of these levels (of level 1 there are only 81)."""
    draw, found = random.Random(seed), dict[Addition, None]()
    while len(found) < count:
        found.setdefault(Addition(tuple(draw.randint(1, 9) for _ in range(draw.choice(levels) + 1))))
    return list(found)


def answer_of(solution: str) -> str:
    """Return what the last line says, or nothing."""
    return solution.splitlines()[-1].rpartition("=")[2] if solution.strip() else ""


def solved(name: str, problem: Addition, solutions: Sequence[str], labelled: bool = False) -> Record:
    """Return a record of solutions; ``labelled``: each line is a segment, +1 right, -1 wrong."""
    segments = [
        Segment(candidate=at, start=line, end=line + 1, unit="steps", value=1.0 if right else -1.0)
        for at, solution in enumerate(solutions if labelled else ())
        for line, right in enumerate(problem.judged(solution))
    ]
    return Record(
        id=name,
        prompt=problem.prompt(),
        candidates=tuple(Candidate(parts=(TextPart(text=solution),)) for solution in solutions),
        feedback=tuple(segments),
        conditions={"difficulty": problem.level},
    )
