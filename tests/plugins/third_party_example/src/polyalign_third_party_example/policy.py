"""A policy over walks: each step is drawn from a Gaussian whose mean depends on the prompt and on where the walk is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from polyalign.errors import MediaError
from polyalign.policies.base import Actions, Batch, Collator, Kind, Policy, Rollout, Rollouts, Scores
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, Message, text_of
from polyalign_third_party_example.config import WalkerConfig
from polyalign_third_party_example.modality import Walk

WORDS = ("up", "down")


def asked(prompt: Sequence[Message]) -> list[float]:
    """Return one number per known word: 1 where the prompt says it."""
    said = text_of(prompt[-1].parts).lower().split()
    return [float(word in said) for word in WORDS]


class WalkCollator(Collator):
    """Prompts as word flags ``[N, 2]``; walks as positions ``[N, T + 1]`` that start at 0, padded at the end."""

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        walks = [torch.tensor(_walk_of(sample)) for sample in samples]
        longest = max(map(len, walks))
        positions = torch.stack([nn.functional.pad(walk, (1, longest - len(walk))) for walk in walks])
        mask = torch.stack([torch.arange(longest) < len(walk) for walk in walks])
        prompts = torch.tensor([asked(sample.prompt) for sample in samples])
        kind = torch.full((len(walks), longest), int(Kind.ACTION))
        keys = tuple(sample.content_key() for sample in samples)
        return Batch(tuple(samples), {"prompts": prompts, "positions": positions}, mask[:, None], kind, keys)

    def cost(self, sample: Sample) -> int:
        return len(_walk_of(sample))


def _walk_of(sample: Sample) -> list[float]:
    media = [part.media for part in sample.response if isinstance(part, MediaPart)]
    if len(media) != 1 or sample.media is None:
        raise MediaError(f"response of {sample.id!r} has {len(media)} walks; expected exactly one")
    return Walk().decode(sample.media.read(media[0]))


class Walker(Policy):
    """Position t+1 is Normal(position t + net(prompt, position t), spread)."""

    family = "continuous"
    inputs = frozenset({"text"})
    outputs = frozenset({"walk"})
    provides = frozenset({"log_probs"})

    def __init__(self, config: WalkerConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.collator = WalkCollator()
        self.net = nn.Sequential(nn.Linear(len(WORDS) + 1, config.hidden), nn.Tanh(), nn.Linear(config.hidden, 1))
        generator = keyed_generator(seed, "walker")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))

    def step(self, prompts: Tensor, position: Tensor) -> Tensor:
        """Return the expected next position ``[N]`` for prompts ``[N, 2]`` and positions ``[N]``."""
        inputs = torch.cat([prompts, torch.tanh(position)[:, None]], dim=-1)
        return position + self.net(inputs)[:, 0]  # type: ignore[no-any-return]

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        positions = batch.tensors["positions"]  # [N, T + 1]
        count, length = positions.shape[0], positions.shape[1] - 1
        prompts = batch.tensors["prompts"].repeat_interleave(length, dim=0)
        mean = self.step(prompts, positions[:, :-1].reshape(-1)).view(count, length)
        log_probs = torch.distributions.Normal(mean, self.config.spread).log_prob(positions[:, 1:])
        return Scores(log_probs.float()[:, None], batch.mask, batch.kind)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        rollouts = []
        for prompt in prompts:
            flags = torch.tensor([asked(prompt)])
            for draw in range(samples_per_prompt):
                noise = torch.randn(self.config.steps, generator=keyed_generator(seed, text_of(prompt[-1].parts), draw))
                position, walk = torch.zeros(1), []
                for shake in noise:
                    position = self.step(flags, position) + self.config.spread * shake
                    walk.append(float(position))
                rollouts.append(Rollout(prompt, walk, (Actions(torch.tensor(walk)[:, None]),), decoding=decoding))
        return tuple(rollouts)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")

    def fingerprint(self) -> str:
        weights = b"".join(value.detach().cpu().numpy().tobytes() for value in self.state_dict().values())
        return hashlib.blake2b(weights + repr(self.config).encode(), digest_size=16).hexdigest()


def build(config: WalkerConfig, *, device: str = "cpu", seed: int = 0) -> Walker:
    """Return a fresh walker."""
    return Walker(config, seed).to(device)
