"""Build `datasets/text-constraints`: checkable instructions, each with an answer that keeps them and one that does not.

    python3 tools/dev.py data text-constraints        # a second

The facts are our own sentences (`text_constraints_topics.tsv`); prompts and answers are put together from them by the
tasks below. Both answers of a record say true things about the topic, so that the instruction alone decides, and every
record is checked by the rules of `polyalign.rewards.rules.sentences` before it is written.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, Provenance, Record, text_of
from polyalign.rewards.rules.sentences import Constraint, read_constraints
from polyalign.rewards.rules.text import words

ROOT = Path(__file__).resolve().parents[2]
TOPICS = Path(__file__).with_name("text_constraints_topics.tsv")
TASKS_PER_TOPIC = 6
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Topic:
    """A question and three true sentences about it; ``keyword`` stands in the second sentence only."""

    name: str
    question: str
    first: str
    second: str
    third: str
    keyword: str

    @property
    def facts(self) -> tuple[str, str, str]:
        return self.first, self.second, self.third


@dataclass(frozen=True)
class Task:
    constraints: tuple[Constraint, ...]
    chosen: str
    rejected: str


def prose(*facts: str) -> str:
    return " ".join(facts)


def one(rule: str, *arguments: object) -> tuple[Constraint, ...]:
    return (Constraint(rule, tuple(map(str, arguments))),)


def at_most_words(topic: Topic, use: int) -> Task:
    limit = len(words(topic.first)) + use % 4
    return Task(one("at_most_words", limit), topic.first, prose(*topic.facts))


def at_least_words(topic: Topic, use: int) -> Task:
    return Task(one("at_least_words", 16 + use % 6), prose(*topic.facts), topic.first)


def sentences(topic: Topic, use: int) -> Task:
    count = 2 + use % 2
    wrong = topic.facts[:2] if count == 3 else (topic.facts[:1], topic.facts)[use // 2 % 2]
    return Task(one("sentences", count), prose(*topic.facts[:count]), prose(*wrong))


def include(topic: Topic, use: int) -> Task:
    return Task(one("include", topic.keyword), prose(topic.first, topic.second), prose(topic.first, topic.third))


def exclude(topic: Topic, use: int) -> Task:
    return Task(one("exclude", topic.keyword), prose(topic.first, topic.third), prose(topic.first, topic.second))


def lowercase(topic: Topic, use: int) -> Task:
    answer = prose(topic.first, topic.second)
    return Task(one("lowercase"), answer.lower(), answer)


def uppercase(topic: Topic, use: int) -> Task:
    return Task(one("uppercase"), topic.first.upper(), topic.first)


def no_commas(topic: Topic, use: int) -> Task:
    joined = f"{topic.first[:-1]}, and {topic.second[0].lower()}{topic.second[1:]}"
    return Task(one("no_commas"), prose(topic.first, topic.second), joined)


def bullets(topic: Topic, use: int) -> Task:
    count = 2 + use % 2
    lines = [f"- {fact}" for fact in topic.facts]
    wrong = [prose(*topic.facts[:count]), "\n".join(lines[: 5 - count])][use // 2 % 2]  # prose, or the other number of bullets
    return Task(one("bullets", count), "\n".join(lines[:count]), wrong)


def json_object(topic: Topic, use: int) -> Task:
    keys = [("topic", "fact"), ("name", "text")][use % 2]
    answer = json.dumps(dict(zip(keys, (topic.name, topic.first), strict=True)), ensure_ascii=False)
    wrong = [topic.first, json.dumps({"info": topic.first}), f"{keys[0]}: {topic.name}\n{keys[1]}: {topic.first}"][use % 3]
    return Task(one("json", *keys), answer, wrong)


def starts_with(topic: Topic, use: int) -> Task:
    opening = ["In short:", "Good question!", "Here is the answer:"][use % 3]
    return Task(one("starts_with", opening), prose(opening, topic.first), topic.first)


def ends_with(topic: Topic, use: int) -> Task:
    closing = ["That is all.", "I hope this helps!", "Now you know."][use % 3]
    answer = prose(topic.first, topic.second)
    return Task(one("ends_with", closing), prose(answer, closing), answer)


def short_lowercase(topic: Topic, use: int) -> Task:
    """Two constraints at once; the rejected answer keeps one of them."""
    limit = one("at_most_words", len(words(topic.first)) + use % 4)
    wrong = [topic.first, prose(*topic.facts).lower()][use % 2]
    return Task(limit + one("lowercase"), topic.first.lower(), wrong)


def word_in_two_sentences(topic: Topic, use: int) -> Task:
    """Two constraints at once; the rejected answer keeps one of them."""
    wrong = [prose(topic.first, topic.third), prose(*topic.facts)][use % 2]
    return Task(one("sentences", 2) + one("include", topic.keyword), prose(topic.first, topic.second), wrong)


TASKS: tuple[Callable[[Topic, int], Task], ...] = (
    at_most_words,
    at_least_words,
    sentences,
    include,
    exclude,
    lowercase,
    uppercase,
    no_commas,
    bullets,
    json_object,
    starts_with,
    ends_with,
    short_lowercase,
    word_in_two_sentences,
)


def record(topic: Topic, name: str, task: Task, chosen_first: bool) -> Record:
    """Return the record, checked: the prompt states the constraints, the chosen answer keeps all, the rejected breaks one."""
    prompt = " ".join([topic.question, *(constraint.sentence() for constraint in task.constraints)])
    if sorted(read_constraints(prompt), key=str) != sorted(task.constraints, key=str):
        raise ValueError(f"{topic.name}/{name}: the prompt {prompt!r} does not read back as {task.constraints}")
    if not all(constraint.holds(task.chosen) for constraint in task.constraints):
        raise ValueError(f"{topic.name}/{name}: the chosen answer {task.chosen!r} breaks {task.constraints}")
    if all(constraint.holds(task.rejected) for constraint in task.constraints):
        raise ValueError(f"{topic.name}/{name}: the rejected answer {task.rejected!r} keeps {task.constraints}")
    answers = (task.chosen, task.rejected) if chosen_first else (task.rejected, task.chosen)
    return Record(
        id=f"{topic.name.lower().replace(' ', '-')}-{name.replace('_', '-')}",
        prompt=prompt,  # type: ignore[arg-type]
        candidates=tuple(Candidate(parts=answer, producer="template") for answer in answers),  # type: ignore[arg-type]
        feedback=(Comparison(ranking=(0, 1) if chosen_first else (1, 0), aspect="instructions", annotator="rule:constraints"),),  # type: ignore[arg-type]
        group=name,
        provenance=Provenance(source="tools/builders/text_constraints.py", method="rule"),
        licence=LICENCE,
    )


def build() -> dict[str, list[Record]]:
    """Return the records of both splits. Every fifth topic is held out whole; the test split mixes its tasks from the start."""
    topics = [Topic(*line.split("\t")) for line in TOPICS.read_text().splitlines()]
    uses: Counter[str] = Counter()
    placed: dict[str, list[tuple[int, Record]]] = {"train": [], "test": []}
    for number, topic in enumerate(topics):
        for slot in range(TASKS_PER_TOPIC):
            task = TASKS[(TASKS_PER_TOPIC * number + slot) % len(TASKS)]
            use = uses[task.__name__]
            uses[task.__name__] += 1
            made = record(topic, task.__name__, task(topic, use), chosen_first=(number + slot) % 2 == 0)
            placed["test" if number % 5 == 4 else "train"].append((slot, made))
    placed["test"].sort(key=lambda item: item[0])
    return {split: [made for _, made in rows] for split, rows in placed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, default=ROOT / "datasets" / "text-constraints")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in build().items():
        lengths = [
            [len(words(text_of(made.candidates[index].parts))) for made in records for index in made.feedback[0].ranking[tier]]  # type: ignore[union-attr]
            for tier in (0, 1)
        ]
        chosen, rejected = (sum(side) / len(side) for side in lengths)
        longer = sum(a > b for a, b in zip(*lengths, strict=True))
        write_jsonl(folder / f"{split}.jsonl", records)
        print(
            f"{split}: {len(records)} records, {len({made.group for made in records})} tasks; words: chosen {chosen:.1f}, "
            f"rejected {rejected:.1f}; chosen is longer in {longer}"
        )


if __name__ == "__main__":
    main()
