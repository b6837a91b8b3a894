"""The denoising family: any model that predicts noise, v or velocity from a noised latent, whatever the medium.

An offline denoising model has no exact likelihood. The score of one draw (t, noise) is ``-1/2`` of its denoising error, so
that beta times the DPO margin is exactly Diffusion-DPO (Wallace et al. 2023, equation 14, constant weight) or Flow-DPO.
beta belongs to the reduction: ``beta_sum = beta_mean / dimensions of a latent``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.policies.base import Batch, Scores
from polyalign.policies.config import DenoisingConfig
from polyalign.policies.denoising_collator import DenoisingCollator
from polyalign.policies.feature_cache import FeatureCache, Features
from polyalign.policies.prepared import PreparedPolicy
from polyalign.policies.samplers import Grid, grid_of
from polyalign.policies.sampling import GradientPlan, sample_with_gradient
from polyalign.policies.schedules import Schedule
from polyalign.policies.transitions import score_transitions
from polyalign.records.samples import Sample
from polyalign.records.schema import Message


class DenoisingPolicy(PreparedPolicy):
    """Scores samples by their denoising error. A plugin says how to encode and how to call its network.

    ``provides`` "predictions": the extras "predictions" and "targets", ``[N, D, ...]`` float32, keep their gradient;
    "clean_scale" ``[N, D]``: by how much an error of the prediction counts in the clean latents that it implies; batches of
    rollouts add "old_predictions". A policy that implements `latent_shape`, `decode_latents` and `outputs_of` also draws
    rollouts (`sampling.rollouts_of`), and provides "sample_grad": the extra "samples", decoded with a gradient,
    and "prompts".
    """

    family = "denoising"
    provides = frozenset({"log_probs", "predictions"})
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

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # what drawing responses needs besides `denoise`

    def latent_shape(self, prompt: tuple[Message, ...]) -> tuple[int, ...]:
        """Return the shape of the latents of a response to this prompt."""
        raise TrainingError(f"{type(self).__name__} cannot draw responses step by step: it does not say what shape they have")

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return responses as tensors (pictures: ``[N, 3, H, W]`` in [0, 1]) of latents ``[N, ...]``; keeps the gradient."""
        raise TrainingError(f"{type(self).__name__} cannot decode latents")

    def outputs_of(self, decoded: Tensor) -> list[Any]:
        """Return decoded tensors as the media that rewards read (PIL images ...)."""
        raise TrainingError(f"{type(self).__name__} cannot make media of decoded tensors")

    def sampling_grid(self, steps: int) -> Grid:
        """Return the noise levels of a sampler of so many steps. Default: spread evenly over the schedule."""
        return grid_of(self.schedule, steps)

    def noise_key(self, prompt: tuple[Message, ...]) -> str:
        """Return what the noise of a response is keyed by besides the seed and the response's number."""
        return self.collator.condition_key(Sample("prompt", prompt, (), "prompt"))

    def encode_blank(self) -> None:
        """Store the empty prompt's embeddings under ``collator.blank_key()``, if they are not there yet."""
        self.collator.blank_key()  # says that there is none

    def encode_prompts(self, samples: Sequence[Sample]) -> None:
        """Encode each distinct prompt that has no cached embeddings."""
        self.encode_each(samples, "prompt embeddings", self.collator.condition_key, self.encode_conditions)

    # scoring

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        """Return ``log_probs`` ``[N, D, T]``: ``-1/2 * reduction((target - prediction)^2)`` per draw, in float32, cut along time
        into the batch's decisions (usually 1), which add up to that of the whole. Batches of transitions give their
        log-densities ``[N, 1, T]``. With "samples" wanted, responses are drawn and scores are 0."""
        if "transitions" in batch.tensors:
            if "predictions" in want:
                raise TrainingError(
                    "this objective noises whole responses, but these rollouts are sampler steps; draw them by sampler.kind: ode"
                )
            return score_transitions(self, batch)
        if "samples" in want:
            return self._sampled(batch)
        decisions = batch.mask.shape[-1]
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
                squared = (target.float() - prediction.float()).square()  # [n, D, C, ...]
                parts = squared.movedim(3, 2).flatten(3) if decisions > 1 else squared.flatten(2)[:, :, None]  # [n, D, T, ...]
                size = 1 if self.settings.reduction == "sum" else squared[0, 0].numel()
                errors.append(parts.sum(-1) / size)
            rows.append(group["rows"])
            if keep:
                level = group["level"][group["noised_draw"]][group["row_noised"]]
                extras = {"predictions": prediction.float(), "targets": target.float()}
                extras["clean_scale"] = self.schedule.clean_scale(level)
                if "old_predictions" in group:
                    extras["old_predictions"] = group["old_predictions"]
        order = torch.argsort(torch.cat(rows))
        log_probs = (-0.5 * torch.cat(errors)[order]).reshape(batch.mask.shape)
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

    def _sampled(self, batch: Batch) -> Scores:
        plan = batch.tensors.get("plan")
        if not isinstance(plan, GradientPlan):
            raise TrainingError("samples were asked for, but the batch says not how: give it a GradientPlan as tensors['plan']")
        samples = sample_with_gradient(self, batch, plan)
        extras = {"samples": samples, "prompts": tuple(sample.prompt for sample in batch.samples)}
        return Scores(torch.zeros(batch.mask.shape, device=samples.device), batch.mask, batch.kind, extras)

    # features of the frozen encoders

    def encode_missing(self, samples: Sequence[Sample], progress: Any = None) -> None:
        """Encode each distinct response and prompt that has no cached features, ``encode_batch`` at a time."""
        answered = [sample for sample in samples if sample.response]  # prompts alone have nothing to denoise
        self.encode_each(answered, "latents", self.collator.latent_key, self.encode_latents, progress)
        self.encode_each(samples, "prompt embeddings", self.collator.condition_key, self.encode_conditions, progress)

    @property
    def features(self) -> FeatureCache:
        return self.collator.features

    def score_description(self) -> str:
        """Return the settings that scores depend on besides weights and content; it enters `fingerprint`."""
        settings = self.settings
        cut = f"/{self.collator.decisions} decisions" if self.collator.decisions > 1 else ""
        return f"{settings.reduction}/{settings.latents}/{settings.timesteps}/{self.schedule.description()}{cut}"
