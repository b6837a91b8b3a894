"""Responses that the student samples before it learns: the states of ADPA, the on-policy share of GKD."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyalign.policies.base import Policy
from polyalign.records.atomic import write_text
from polyalign.records.samples import Example, Prompt, Sample
from polyalign.records.schema import Message, TextPart
from polyalign.training.batches import ExampleSource

PROMPTS_PER_FILE = 32  # what a killed run can lose


class SelfSamples:
    """Texts by prompt, ``count`` each, kept in ``folder``: files of a few prompts each, whole or absent. What a prompt gets does
    not depend on the other prompts, so a run that was killed goes on where it stopped and samples nothing again."""

    def __init__(self, folder: Path, student: Policy, count: int, seed: int, decoding: dict[str, Any]) -> None:
        self.student, self.count, self.seed, self.decoding = student, count, seed, decoding
        settings = json.dumps([student.fingerprint(), count, seed, decoding], sort_keys=True)
        self.folder = folder / "self-samples" / _hash(settings)
        self.texts: dict[str, list[str]] = {}
        for path in sorted(self.folder.glob("*.json")):
            self.texts |= json.loads(path.read_text(encoding="utf-8"))

    def lacks(self, sample: Sample) -> bool:
        return prompt_key(sample.prompt) not in self.texts

    def draw(self, samples: Sequence[Sample]) -> int:
        """Answer the prompts of these samples that have no texts yet; return how many those were."""
        missing = list({prompt_key(one.prompt): Prompt.of(one.prompt, one.media) for one in samples if self.lacks(one)}.items())
        for start in range(0, len(missing), PROMPTS_PER_FILE):
            part = missing[start : start + PROMPTS_PER_FILE]
            asked = [prompt for _, prompt in part]
            rollouts = self.student.generate(asked, samples_per_prompt=self.count, seed=self.seed, **self.decoding)
            texts = [str(rollout.output) for rollout in rollouts]
            drawn = {key: texts[number * self.count : (number + 1) * self.count] for number, (key, _) in enumerate(part)}
            content = json.dumps(drawn)
            write_text(self.folder / f"{_hash(content)}.json", content)
            self.texts |= drawn
        return len(missing)


class WithSelfSamples:
    """Examples, each with the student's own responses to their prompts, in the role "self_sample"."""

    def __init__(self, source: ExampleSource, drawn: SelfSamples) -> None:
        self.source, self.texts = source, drawn.texts

    def __len__(self) -> int:
        return len(self.source)

    def position(self, position: int, seed: int) -> tuple[int, int]:
        return self.source.position(position, seed)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        first = {sample.prompt: sample for sample in reversed(example.samples)}
        drawn = [
            replace(sample, id=f"{sample.id}~self-{number}", response=(TextPart(text=text),), role="self_sample")
            for prompt, sample in first.items()
            for number, text in enumerate(self.texts[prompt_key(prompt)])
        ]
        labels = (*example.labels, *[0] * len(drawn)) if example.labels else ()
        return replace(example, samples=(*example.samples, *drawn), labels=labels)


def prompt_key(prompt: tuple[Message, ...]) -> str:
    return _hash(json.dumps([message.model_dump(mode="json") for message in prompt]))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
