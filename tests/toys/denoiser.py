"""A linear denoiser of short number strings: the smallest policy of the denoising family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.policies.base import Rollouts
from polyalign.policies.config import DenoisingConfig, SamplerConfig
from polyalign.policies.denoising import DenoisingPolicy
from polyalign.policies.denoising_collator import DenoisingCollator
from polyalign.policies.feature_cache import FeatureCache, Features
from polyalign.policies.sampling import rollouts_of
from polyalign.policies.schedules import Schedule
from polyalign.randomness import keyed_seed
from polyalign.records.samples import Edge, Example, Sample
from polyalign.records.schema import Message, TextPart, text_of

SIZE = 4
SCHEDULES = {
    "epsilon": Schedule.variance_preserving(torch.linspace(0.999, 0.01, 100)),
    "v_prediction": Schedule.variance_preserving(torch.linspace(0.999, 0.01, 100), "v_prediction"),
    "flow": Schedule.flow(100, shift=3.0),
}


class NumberCollator(DenoisingCollator):
    def latent_key(self, sample: Sample) -> str:
        return f"{keyed_seed('latent', text_of(sample.response)):016x}"

    def condition_key(self, sample: Sample) -> str:
        return f"{keyed_seed('prompt', text_of(sample.prompt[-1].parts)):016x}"

    def blank_key(self) -> str:
        return "blank"


class LinearDenoiser(DenoisingPolicy):
    """prediction = W noised + b * t + c(prompt); ``clean`` latents are the numbers of the response."""

    encode_batch = 2
    provides = frozenset({"log_probs", "predictions", "sample_grad"})

    def __init__(self, schedule: str = "epsilon", seed: int = 0, **settings: Any) -> None:
        super().__init__(NumberCollator(FeatureCache(), SCHEDULES[schedule], DenoisingConfig(**settings), seed))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(SIZE, SIZE)
        self.latents_encoded = self.prompts_encoded = self.rows_denoised = 0

    def denoise(self, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        self.rows_denoised += len(noised)
        padded = nn.functional.pad(noised, (0, SIZE - noised.shape[-1]))
        predicted = self.layer(padded) + timesteps[:, None] / 100 + conditions["prompt"]
        return predicted[:, : noised.shape[-1]]

    def encode_latents(self, samples: Sequence[Sample]) -> list[Features]:
        self.latents_encoded += len(samples)
        entries = []
        for sample in samples:
            mean = torch.tensor([float(word) for word in text_of(sample.response).split()])
            entries.append({"mean": mean, "std": torch.full_like(mean, 0.1)})
        return entries

    def encode_conditions(self, samples: Sequence[Sample]) -> list[Features]:
        self.prompts_encoded += len(samples)
        return [{"prompt": torch.full((SIZE,), len(text_of(sample.prompt[-1].parts)) / 10)} for sample in samples]

    def latent_shape(self, prompt: tuple[Message, ...]) -> tuple[int, ...]:
        return (SIZE,)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return 2 * latents

    def outputs_of(self, decoded: Tensor) -> list[Any]:
        return [" ".join(f"{number:.3f}" for number in row.tolist()) for row in decoded]

    def encode_blank(self) -> None:
        self.collator.features.store(self.collator.blank_key(), {"prompt": torch.zeros(SIZE)}, "the empty prompt")

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        return rollouts_of(self, prompts, samples_per_prompt, seed, SamplerConfig(**decoding.get("sampler", decoding)))

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def fingerprint(self) -> str:
        return self.score_description()


def sample(response: str, prompt: str = "draw", draw_key: str = "set", epoch: int = 0) -> Sample:
    message = Message(role="user", parts=(TextPart(text=prompt),))
    return Sample(f"{prompt}/{response}", (message,), (TextPart(text=response),), draw_key, epoch=epoch)


def pair(better: str = "1 0 0 1", worse: str = "0 1 1 0", draw_key: str = "set", epoch: int = 0) -> Example:
    samples = (sample(better, draw_key=draw_key, epoch=epoch), sample(worse, draw_key=draw_key, epoch=epoch))
    return Example(draw_key, samples, edges=(Edge(0, 1),))


def grid(epoch: int = 0) -> Example:
    """Two prompts x two responses, in the order of the grid view."""
    cells = [(prompt, response) for prompt in ("one", "other") for response in ("1 0 0 1", "0 1 1 0")]
    samples = tuple(sample(response, prompt, "grid", epoch) for prompt, response in cells)
    edges = (
        Edge(0, 1),
        Edge(3, 2, ranking=1),
        Edge(0, 2, ranking=2, contrast="prompt"),
        Edge(3, 1, ranking=3, contrast="prompt"),
    )
    return Example("grid", samples, edges=edges)
