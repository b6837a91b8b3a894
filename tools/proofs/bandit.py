"""A world of 50 answers whose true worth is known: the simulator of the proof online-vs-offline.

One question has 50 answers, of gold reward N(0, 1). The reference model likes what is bad: its logits are N(0, 1) minus the gold
reward. A policy is a table of 50 logits, so that its divergence from the reference and its mean gold reward are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.policies.base import Actions, Batch, Collator, Kind, Policy, Rollout, Rollouts, Scores
from polyalign.policies.continuous import CategoricalHead
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Edge, Example, Sample
from polyalign.records.schema import Message, TextPart, text_of
from polyalign.rewards.base import Judged, Reward

ANSWERS = 50


def question(number: int) -> tuple[Message, ...]:
    """Return the one question, numbered, so that a batch may ask it several times with draws of their own."""
    return (Message(role="user", parts=(TextPart(text=f"question {number}"),)),)


def answered(name: str, answer: int) -> Sample:
    return Sample(name, question(0), (TextPart(text=str(answer)),), name)


class AnswerCollator(Collator):
    def __call__(self, samples: Sequence[Sample]) -> Batch:
        answers = torch.tensor([int(text_of(sample.response)) for sample in samples])
        mask = torch.ones(len(samples), 1, 1, dtype=torch.bool)
        kind = torch.full((len(samples), 1), int(Kind.ACTION))
        return Batch(tuple(samples), {"answers": answers}, mask, kind)  # type: ignore[arg-type]

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        return self([Sample(f"rollout-{n}", one.prompt, one.parts, f"rollout-{n}") for n, one in enumerate(rollouts)])


class Table(Policy):
    """A logit per answer. ``hidden`` is the answer one-hot, so that a head on it is a table of rewards."""

    family = "continuous"
    inputs = outputs = frozenset({"text"})
    provides = frozenset({"log_probs", "hidden"})

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.collator = AnswerCollator()
        self.head = CategoricalHead(ANSWERS)
        self.logits = nn.Parameter(logits.clone())

    @property
    def feature_sizes(self) -> dict[str, int]:
        return {"hidden": ANSWERS}

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        answers = batch.tensors["answers"]
        log_probs = self.head.log_probs(self.logits.expand(len(answers), -1), answers)
        extras = {"hidden": nn.functional.one_hot(answers, ANSWERS).float()} if "hidden" in want else {}
        return Scores(log_probs[:, None, None], batch.mask, batch.kind, extras)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        rollouts = []
        for prompt in prompts:
            noise = self.head.noise(samples_per_prompt, keyed_generator(seed, text_of(prompt[-1].parts)))
            drawn = self.head.draw(self.logits.expand(samples_per_prompt, -1), noise)
            for answer, log_prob in zip(drawn, torch.log_softmax(self.logits, -1)[drawn]):
                text = str(int(answer))
                parts = (TextPart(text=text),)
                rollouts.append(Rollout(prompt, text, (Actions(answer[None, None]),), log_prob[None], decoding, parts))
        return tuple(rollouts)

    def save(self, folder: Path) -> None:
        raise NotImplementedError("a table lives as long as the proof")

    def fingerprint(self) -> str:
        return weights_fingerprint(self.state_dict().items())


@dataclass(frozen=True)
class World:
    """``gold`` ``[50]`` rewards, ``reference`` ``[50]`` logits."""

    gold: Tensor
    reference: Tensor

    @classmethod
    def of(cls, seed: int) -> World:
        draw = keyed_generator("bandit", seed)
        gold = torch.randn(ANSWERS, generator=draw)
        return cls(gold, torch.randn(ANSWERS, generator=draw) - gold)

    def pairs(self, count: int, seed: int) -> list[Example]:
        """Return pairs of unequal answers of the reference, each preferred with probability sigma(gold difference)."""
        draw, probabilities = keyed_generator("pairs", seed), torch.softmax(self.reference, -1)
        found: list[Example] = []
        while len(found) < count:
            first, second = torch.multinomial(probabilities, 2, replacement=True, generator=draw).tolist()
            wins = torch.rand((), generator=draw) < torch.sigmoid(self.gold[first] - self.gold[second])
            if first != second:
                found.append(preferred(len(found), *((first, second) if wins else (second, first))))
        return found

    def place(self, policy: Table) -> tuple[float, float]:
        """Return (KL(policy || reference) in nats, mean gold reward of the policy), both exact."""
        log_probs = torch.log_softmax(policy.logits.detach(), -1)
        gap = log_probs - torch.log_softmax(self.reference, -1)
        return float((log_probs.exp() * gap).sum()), float((log_probs.exp() * self.gold).sum())


def preferred(number: int, better: int, worse: int) -> Example:
    sides = (answered(f"{number}/{side}", answer) for side, answer in enumerate((better, worse)))
    samples = tuple(replace(sample, draw_key=str(number)) for sample in sides)
    return Example(f"pair-{number}", samples, (Edge(0, 1),))


class TableReward(Reward):
    """What a table says each answer is worth."""

    name = "table"

    def __init__(self, values: Tensor) -> None:
        self.values = values.tolist()

    def score(self, items: Sequence[Judged]) -> list[float]:
        return [self.values[int(item.output)] for item in items]
