"""The denoising family: any model that predicts noise, v or velocity from a noised latent, whatever the medium.

An offline denoising model has no exact likelihood. The score of one draw (t, noise) is ``-1/2`` of its denoising error, so
that beta times the DPO margin is exactly Diffusion-DPO (Wallace et al. 2023, equation 14, constant weight) or Flow-DPO.
beta belongs to the reduction: ``beta_sum = beta_mean / dimensions of a latent``.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.policies.base import Batch, Policy, Scores
from polyalign.policies.config import DenoisingConfig
from polyalign.policies.denoising_collator import DenoisingCollator
from polyalign.policies.feature_cache import Features
from polyalign.policies.schedules import Schedule
from polyalign.records.samples import Sample


class DenoisingPolicy(Policy):
    """Scores samples by their denoising error. A plugin says how to encode and how to call its network.

    ``provides`` "predictions": the extras "predictions" and "targets", ``[N, D, ...]`` float32, keep their gradient.
    """

    family = "denoising"
    provides = frozenset({"log_probs", "predictions"})
    encode_batch: ClassVar[int] = 16
    collator: DenoisingCollator

    def __init__(self, collator: DenoisingCollator) -> None:
        super().__init__()
        self.collator = collator

    @property
    def schedule(self) -> Schedule:
        return self.collator.schedule

    @property
    def settings(self) -> DenoisingConfig:
        return self.collator.config

    @abstractmethod
    def denoise(self, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """Return the network's prediction for ``noised`` ``[B, ...]`` at ``timesteps`` ``[B]``, in the shape of ``noised``."""

    @abstractmethod
    def encode_latents(self, samples: Sequence[Sample]) -> list[Features]:
        """Return "mean" (and "std", if ``latents: sample``) of each response, scaled as the network expects them."""

    @abstractmethod
    def encode_conditions(self, samples: Sequence[Sample]) -> list[Features]:
        """Return the named embeddings of each prompt, without a batch dimension."""

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Have the frozen encoders ready inside (on the device, in eval mode). Default: they always are."""
        yield

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        """Return ``log_probs`` ``[N, D, 1]``: ``-1/2 * reduction((target - prediction)^2)`` per draw, in float32."""
        count, draws, _ = batch.mask.shape
        groups = batch.tensors["groups"]
        keep = "predictions" in want
        if keep and len(groups) > 1:
            raise TrainingError(
                "predictions were asked for, but the latents of this batch have several shapes; give all media one size"
            )
        rows, errors, extras = [], [], {}
        for group in groups:
            prediction, target = self._predict(group)
            with torch.autocast(prediction.device.type, enabled=False):
                squared = (target.float() - prediction.float()).square().flatten(2)  # [n, D, dimensions]
                errors.append(squared.sum(-1) if self.settings.reduction == "sum" else squared.mean(-1))
            rows.append(group["rows"])
            if keep:
                extras = {"predictions": prediction.float(), "targets": target.float()}
        order = torch.argsort(torch.cat(rows))
        log_probs = (-0.5 * torch.cat(errors)[order]).reshape(count, draws, 1)
        return Scores(log_probs, batch.mask, batch.kind, extras)

    def _predict(self, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return prediction and target ``[n, D, ...]`` of a group. Each distinct noised latent is made once."""
        clean, noise = group["clean"][group["noised_clean"]], group["noise"][group["noised_draw"]]
        level = group["level"][group["noised_draw"]]
        noised, target = self.schedule.add_noise(clean, noise, level), self.schedule.target(clean, noise, level)
        pick, draws = group["row_noised"], noise.shape[1]
        conditions = {
            name: value[group["row_condition"]].repeat_interleave(draws, 0) for name, value in group["conditions"].items()
        }
        prediction = self.denoise(noised[pick].flatten(0, 1), self.schedule.timestep(level)[pick].flatten(), conditions)
        target = target[pick]
        return prediction.reshape(target.shape), target

    # features of the frozen encoders

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Collate; features that `prepare` has not seen are encoded first. Loader workers use ``collator`` and cannot."""
        self.encode_missing(samples)
        return self.collator(samples)

    def prepare(self, samples: Sequence[Sample], cache: Path, progress: Any = None) -> None:
        """Encode what is not yet in ``cache``; a killed run goes on where it stopped. ``progress``: a started
        `rich.progress.Progress` to show bars in; none gives its own on a terminal."""
        self.collator.features.attach(Path(cache) / "features")
        if progress is not None or not sys.stderr.isatty():
            self.encode_missing(samples, progress)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            self.encode_missing(samples, bar)

    def encode_missing(self, samples: Sequence[Sample], progress: Any = None) -> None:
        """Encode each distinct response and prompt that has no cached features, ``encode_batch`` at a time."""
        features = self.collator.features
        kinds: tuple[tuple[str, Callable[[Sample], str], Callable[[Sequence[Sample]], list[Features]]], ...] = (
            ("latents", self.collator.latent_key, self.encode_latents),
            ("prompt embeddings", self.collator.condition_key, self.encode_conditions),
        )
        for what, key_of, encode in kinds:
            missing: dict[str, Sample] = {}
            for sample in samples:
                key = key_of(sample)
                if key not in missing and key not in features:
                    missing[key] = sample
            if not missing:
                continue
            task = progress.add_task(f"encoding {what}", total=len(missing)) if progress is not None else None
            keys = list(missing)
            with self.encoders(), torch.no_grad():
                for start in range(0, len(keys), self.encode_batch):
                    chunk = keys[start : start + self.encode_batch]
                    encoded = encode([missing[key] for key in chunk])
                    for key, entry in zip(chunk, encoded, strict=True):
                        features.store(key, entry, f"the {what} of sample {missing[key].id!r}")
                    if task is not None:
                        progress.advance(task, len(chunk))

    def score_description(self) -> str:
        """Return the settings that scores depend on besides weights and content; it enters `fingerprint`."""
        settings = self.settings
        return f"{settings.reduction}/{settings.latents}/{settings.timesteps}/{self.schedule.description()}"
