"""A Gaussian action policy on number strings: the smallest policy that goes through every seam of the core."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from polyalign.policies.base import Actions, Batch, Collator, Kind, Policy, Rollout, Rollouts, Scores
from polyalign.randomness import keyed_generator, keyed_seed
from polyalign.records.samples import Edge, Example, Sample
from polyalign.records.schema import Message, TextPart, text_of

STATE, ACTION = 3, 2


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


class ActionCollator(Collator):
    """State from the prompt's text, a trajectory of T actions of size 2 from the response's text."""

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        states = torch.tensor([numbers(text_of(sample.prompt[-1].parts)) for sample in samples])
        actions = [torch.tensor(numbers(text_of(sample.response))).view(-1, ACTION) for sample in samples]
        longest = max(len(action) for action in actions)
        padded = torch.stack([nn.functional.pad(action, (0, 0, 0, longest - len(action))) for action in actions])
        mask = torch.stack([torch.arange(longest) < len(action) for action in actions])[:, None]
        kind = torch.full((len(samples), longest), int(Kind.ACTION))
        keys = tuple(sample.content_key() for sample in samples)
        return Batch(tuple(samples), {"states": states, "actions": padded}, mask, kind, keys)

    def cost(self, sample: Sample) -> int:
        return len(numbers(text_of(sample.response))) // ACTION


class GaussianPolicy(Policy):
    """mean = W s (+ dropout), log N(a; mean, 1) per action of the trajectory."""

    family = "continuous"
    inputs = frozenset({"text"})
    outputs = frozenset({"text"})
    provides = frozenset({"log_probs", "hidden", "values", "sample_grad"})

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.collator = ActionCollator()
        self.mean = nn.Linear(STATE, ACTION)
        self.value = nn.Linear(STATE, 1)
        self.dropout = nn.Dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        states = self.dropout(batch.tensors["states"])
        mean = self.mean(states)
        log_probs = torch.distributions.Normal(mean[:, None], 1.0).log_prob(batch.tensors["actions"]).sum(-1)
        extras: dict[str, Any] = {}
        if "values" in want:
            extras["values"] = self.value(states)[:, 0]
        if "hidden" in want:
            extras["hidden"] = mean
        if "sample_grad" in want:
            extras["sample_grad"] = mean
        return Scores(log_probs[:, None].float(), batch.mask, batch.kind, extras)

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        rollouts = []
        for prompt in prompts:
            text = text_of(prompt[-1].parts)
            mean = self.mean(torch.tensor(numbers(text))).detach()
            for draw in range(samples_per_prompt):
                action = mean + torch.randn(ACTION, generator=keyed_generator(seed, text, draw))
                words = " ".join(f"{value:.4f}" for value in action.tolist())
                log_prob = torch.distributions.Normal(mean, 1.0).log_prob(action).sum()[None]
                rollouts.append(Rollout(prompt, words, (Actions(action[None]),), log_prob, decoding, (TextPart(text=words),)))
        return tuple(rollouts)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")

    def fingerprint(self) -> str:
        return hashlib.blake2b(b"".join(p.detach().numpy().tobytes() for p in self.parameters())).hexdigest()

    def enable_gradient_checkpointing(self) -> None:
        pass


class GaussianWithAdapter(GaussianPolicy):
    """The same with a low-rank update that can be switched off."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.requires_grad_(False)
        self.update = nn.Linear(STATE, ACTION, bias=False)
        nn.init.zeros_(self.update.weight)
        self.on = True
        base = self.mean.forward
        self.mean.forward = lambda s: base(s) + (self.update(s) if self.on else 0.0)  # type: ignore[method-assign]

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True

    @property
    def has_adapters(self) -> bool:
        return True


@dataclass
class ListSource:
    """Examples in memory, in a keyed order."""

    examples: list[Example]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def position(self, position: int, seed: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(self.examples))
        order = sorted(range(len(self.examples)), key=lambda index: keyed_seed(seed, epoch, index))
        return order[place], epoch


def sample(name: str, state: Sequence[float], actions: Sequence[float], key: str) -> Sample:
    prompt = (Message(role="user", parts=(TextPart(text=" ".join(map(str, state))),)),)
    return Sample(name, prompt, (TextPart(text=" ".join(map(str, actions))),), key)


def pair_examples(count: int = 12, seed: int = 0) -> list[Example]:
    """Pairs of trajectories of unequal length and weight: the better one points where the state says."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for number in range(count):
        state = torch.randn(STATE, generator=generator)
        length = 1 + number % 3
        good = state[:ACTION] + 0.1 * torch.randn(length, ACTION, generator=generator)
        bad = -state[:ACTION] + 0.1 * torch.randn(1 + (number + 1) % 3, ACTION, generator=generator)
        pair = [sample(f"r{number}/{i}", state.tolist(), a.flatten().tolist(), f"r{number}") for i, a in enumerate((good, bad))]
        examples.append(Example(f"r{number}", tuple(pair), (Edge(0, 1, weight=0.5 + number % 4),)))
    return examples
