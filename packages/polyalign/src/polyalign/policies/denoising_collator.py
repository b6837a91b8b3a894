"""The CPU side of the denoising family: load cached features, draw keyed noise, share what samples have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.policies.base import Batch, Collator, Kind, Noised, Rollout
from polyalign.policies.config import DenoisingConfig
from polyalign.policies.feature_cache import FeatureCache, Features
from polyalign.policies.prepared import prepared
from polyalign.policies.schedules import Schedule
from polyalign.policies.transitions import noised_decisions, rollout_sample, transition_batch
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample

T = TypeVar("T")
Draw = tuple[str, int]  # what a draw is keyed by besides seed and draw key: ("epoch e", d), or ("bank", entry)


class DenoisingCollator(Collator):
    """Makes a batch from features that `DenoisingPolicy.prepare` has cached; it holds no model and can be pickled.

    Draw d of a sample is keyed by (seed, draw key, epoch, d), so samples of one comparison share t and, where their latents
    have one shape, the noise. With a bank of K draws, epoch e uses entries ``(e * D + d) mod K`` whatever the epoch.

    ``decisions``: into how many a response's latents are cut along their first axis after the channels, which must be as
    long; 1: the response is one decision. Rollouts always are.
    """

    decisions: int = 1

    def __init__(self, features: FeatureCache, schedule: Schedule, config: DenoisingConfig, seed: int) -> None:
        self.features, self.schedule, self.config, self.seed = features, schedule, config, seed

    @abstractmethod
    def latent_key(self, sample: Sample) -> str:
        """Return the cache key of the response's latents: its content, its preprocessing and the encoder's fingerprint."""

    @abstractmethod
    def condition_key(self, sample: Sample) -> str:
        """Return the cache key of the prompt's embeddings: its content and the encoder's fingerprint."""

    def blank_key(self) -> str:
        """Return the cache key of the empty prompt's embeddings, which guidance pushes away from."""
        raise TrainingError(f"{type(self).__name__} knows no empty prompt to guide away from; set sampler.guidance: 1")

    def blank(self) -> Features:
        """Return the empty prompt's embeddings; `DenoisingPolicy.encode_blank` has stored them."""
        return self.features.load(self.blank_key())

    def draws(self, epoch: int) -> tuple[Draw, ...]:
        """Return the keys of the draws of one epoch, as many as ``config.draws``."""
        count, bank = self.config.draws, self.config.bank
        if bank is None:
            return tuple((f"epoch {epoch}", d) for d in range(count))
        return tuple(("bank", (epoch * count + d) % bank) for d in range(count))

    def level(self, draw_key: str, draw: Draw) -> int:
        """Return the noise level of one draw, an index into the schedule."""
        return self.schedule.draw_level(self.config.timesteps, keyed_generator(self.seed, draw_key, *draw, "level"))

    def noise(self, draw_key: str, draw: Draw, shape: Sequence[int]) -> Tensor:
        """Return the noise of one draw; latents of another shape get other noise."""
        return torch.randn(*shape, generator=keyed_generator(self.seed, draw_key, *draw, "noise", *shape))

    def clean(self, key: str, features: Features, epoch: int) -> Tensor:
        """Return clean latents ``[1, ...]``: the posterior's mean; or ``[D, ...]``: a keyed sample of it per draw."""
        mean = features["mean"].float()
        if self.config.latents == "mean" or "std" not in features:  # a rollout's latents are themselves, not a posterior
            return mean[None]
        generators = [keyed_generator(self.seed, key, *draw, "posterior") for draw in self.draws(epoch)]
        noise = torch.stack([torch.randn(mean.shape, generator=generator) for generator in generators])
        return mean + features["std"].float() * noise

    def cache_keys(self, samples: Sequence[Sample]) -> tuple[str, ...] | None:
        """Return what each sample's scores depend on besides weights; None without a bank, as no draw ever comes back."""
        if self.config.bank is None:
            return None
        keys = []
        for sample in samples:
            entries = ",".join(str(entry) for _, entry in self.draws(sample.epoch))
            keys.append(f"{sample.content_key()}/{sample.draw_key}/{self.seed}/{entries}")
        return tuple(keys)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return a batch of the samples' draws. Prompts alone (no response in any sample) give a batch to draw samples for."""
        groups: dict[Hashable, _Group] = {}
        for row, sample in enumerate(samples if any(sample.response for sample in samples) else ()):
            latent_key, condition_key = self.latent_key(sample), self.condition_key(sample)
            latent, condition = self.load(latent_key, sample, "latents"), self.load(condition_key, sample, "prompt embeddings")
            group = groups.setdefault(_shapes(latent, condition), _Group(self))
            group.add(row, sample, (latent_key, latent), (condition_key, condition))
        return self._batch(samples, groups, self.cache_keys(samples), self.decisions)

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        """Return a batch that scores what these rollouts decided: stored sampler steps, or keyed draws of noise on their
        latents, with "old_predictions" ``[n, D, ...]`` of the weights that drew them."""
        if not noised_decisions(rollouts):
            return transition_batch(self, rollouts)
        samples, groups = [], dict[Hashable, _Group]()
        for row, rollout in enumerate(rollouts):
            decisions = [decision for decision in rollout.decisions if isinstance(decision, Noised)]
            clean = decisions[0].clean
            assert clean is not None and len(decisions) == self.config.draws
            samples.append(replace(rollout_sample(rollout, row), draw_key=decisions[0].key))
            condition_key = self.condition_key(samples[row])
            condition = self.load(condition_key, samples[row], "prompt embeddings")
            group = groups.setdefault(_shapes({"mean": clean}, condition), _Group(self))
            group.add(row, samples[row], (decisions[0].key, {"mean": clean}), (condition_key, condition))
            predictions = [decision.prediction for decision in decisions if decision.prediction is not None]
            group.old_predictions += [torch.stack(predictions)] if predictions else []
        return self._batch(samples, groups, None, 1)

    def _batch(
        self, samples: Sequence[Sample], groups: dict[Hashable, _Group], cache_keys: tuple[str, ...] | None, decisions: int
    ) -> Batch:
        count, draws = len(samples), self.config.draws
        return Batch(
            samples=tuple(samples),
            tensors={"groups": [group.tensors() for group in groups.values()]},
            mask=torch.ones(count, draws, decisions, dtype=torch.bool),  # type: ignore[arg-type]
            kind=torch.full((count, decisions), int(Kind.DENOISING), dtype=torch.long),  # type: ignore[arg-type]
            cache_keys=cache_keys,
        )

    def load(self, key: str, sample: Sample, what: str) -> Features:
        """Return cached features. Raises `TrainingError` naming the sample if `prepare` has not seen it."""
        return prepared(self.features, key, sample, what)


def _shapes(latent: Features, condition: Features) -> Hashable:
    return latent["mean"].shape, tuple((name, condition[name].shape) for name in sorted(condition))


class _Distinct(Generic[T]):
    """Numbers distinct keys in order of appearance and makes the value of each once."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}
        self.values: list[T] = []

    def number(self, key: Hashable, make: Callable[[], T]) -> int:
        if key not in self.numbers:
            self.numbers[key] = len(self.values)
            self.values.append(make())
        return self.numbers[key]


class _Group:
    """Samples of a batch whose tensors have equal shapes. Each distinct latent, draw, noised latent and prompt is kept once."""

    def __init__(self, collator: DenoisingCollator) -> None:
        self.collator = collator
        self.rows: list[int] = []
        self.row_noised: list[int] = []
        self.row_condition: list[int] = []
        self.old_predictions: list[Tensor] = []
        self.clean: _Distinct[Tensor] = _Distinct()
        self.draws: _Distinct[tuple[list[int], Tensor]] = _Distinct()
        self.noised: _Distinct[tuple[int, int]] = _Distinct()
        self.conditions: _Distinct[Features] = _Distinct()

    def add(self, row: int, sample: Sample, latent: tuple[str, Features], condition: tuple[str, Features]) -> None:
        epoch = sample.epoch
        clean = self.clean.number((latent[0], epoch), lambda: self.collator.clean(*latent, epoch))
        draw = self.draws.number((sample.draw_key, epoch), lambda: self._draw(sample, latent[1]["mean"].shape))
        self.rows.append(row)
        self.row_noised.append(self.noised.number((clean, draw), lambda: (clean, draw)))
        self.row_condition.append(self.conditions.number(condition[0], lambda: condition[1]))

    def _draw(self, sample: Sample, shape: Sequence[int]) -> tuple[list[int], Tensor]:
        draws = self.collator.draws(sample.epoch)
        levels = [self.collator.level(sample.draw_key, draw) for draw in draws]
        return levels, torch.stack([self.collator.noise(sample.draw_key, draw, shape) for draw in draws])

    def tensors(self) -> dict[str, Any]:
        """Return ``clean`` [M, 1 or D, ...], ``level`` [G, D], ``noise`` [G, D, ...], ``conditions`` [C, ...], and indices:
        noised latent p is made of clean ``noised_clean[p]`` and draw ``noised_draw[p]``; row i of ``rows`` uses noised
        latent ``row_noised[i]`` and condition ``row_condition[i]``. Rollouts add ``old_predictions`` [n, D, ...] by row."""
        entries = self.conditions.values
        old = {"old_predictions": torch.stack(self.old_predictions)} if self.old_predictions else {}
        return old | {
            "rows": torch.tensor(self.rows),
            "clean": torch.stack(self.clean.values),
            "level": torch.tensor([levels for levels, _ in self.draws.values]),
            "noise": torch.stack([noise for _, noise in self.draws.values]),
            "noised_clean": torch.tensor([clean for clean, _ in self.noised.values]),
            "noised_draw": torch.tensor([draw for _, draw in self.noised.values]),
            "row_noised": torch.tensor(self.row_noised),
            "row_condition": torch.tensor(self.row_condition),
            "conditions": {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]},
        }
