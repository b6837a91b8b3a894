"""The `diffusion-policy`: chunks of real-valued actions, drawn by denoising in the light of what was seen last.

Source: Diffusion Policy (Chi et al. 2023, arXiv 2303.04137). Its scores are those of the denoising family; with the steps of a
stochastic sampler as decisions its online training is that of DPPO (Ren et al. 2024, arXiv 2409.00588).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import ConfigError, TrainingError
from polyalign.policies.base import Batch, Rollouts, Scores
from polyalign.policies.config import decoding_of, decoding_of_round
from polyalign.policies.denoising import DenoisingPolicy
from polyalign.policies.feature_cache import Features
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.transitions import score_transitions
from polyalign.randomness import keyed_seed
from polyalign.records.samples import Sample
from polyalign.records.schema import Message
from polyalign_action.chunk_denoiser import ChunkDenoiser
from polyalign_action.chunk_playing import played
from polyalign_action.chunks import ChunkCollator
from polyalign_action.diffusion_config import DiffusionDecoding, DiffusionPolicyConfig
from polyalign_action.environments import Spaces, open_environment
from polyalign_action.saved import restore, write_model


class DiffusionPolicy(DenoisingPolicy):
    """Observations to chunks of actions. The prompt names the task; what a chunk depends on is what was seen before it.

    The score of a response is ``-1/2`` of its denoising error over all real actions of all its chunks, as if they were one
    latent; each chunk is a decision and has its part of it. So beta is that of pictures, whatever the length of an episode.
    """

    inputs = frozenset({"text"})
    outputs = frozenset({"trajectory"})
    collator: ChunkCollator

    def __init__(self, config: DiffusionPolicyConfig, spaces: Spaces, seed: int = 0) -> None:
        if spaces.discrete:
            raise ConfigError(
                f"diffusion-policy draws real-valued actions (a Box), and {config.environment!r} has {spaces.actions} discrete "
                "ones; use the policy 'action' or 'action-tokens'"
            )
        super().__init__(ChunkCollator(spaces, config, seed))
        self.config, self.spaces = config, spaces
        seen = config.observations * (spaces.observation + config.goal + config.instruction)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "denoiser"))
            self.network = ChunkDenoiser(spaces.actions, seen, config.channels, config.blocks)
        self.last_timestep = float(self.schedule.timesteps[-1])

    # features

    def encode_missing(self, samples: Sequence[Sample], progress: Any = None) -> None:
        """Read each trajectory that was not read yet; prompts alone have nothing to read."""
        super().encode_missing([sample for sample in samples if sample.response], progress)

    def encode_latents(self, samples: Sequence[Sample]) -> list[Features]:
        """Return "mean" ``[T, A]``: the actions as the network sees them."""
        trajectories = [self.collator.reader.trajectory_of(sample) for sample in samples]
        return [{"mean": self.collator.scaled(torch.from_numpy(trajectory.actions))} for trajectory in trajectories]

    def encode_conditions(self, samples: Sequence[Sample]) -> list[Features]:
        """Return "states" ``[T, F]``: what was seen before each action, and what was asked."""
        reader = self.collator.reader
        return [{"states": reader.states_of(sample.id, sample.prompt, reader.trajectory_of(sample))} for sample in samples]

    # scoring

    def denoise(self, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """Return predictions for chunks ``[B, H, A]``; ``conditions["seen"]`` is ``[B, W * F]``."""
        seen = self.config.observation_scale * conditions["seen"]
        prediction: Tensor = self.network(noised, timesteps / self.last_timestep, seen)
        return prediction

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return prediction and target ``[P, D, H, A]`` of the chunks of a batch."""
        level, noise = batch.tensors["level"], batch.tensors["noise"]
        clean = batch.tensors["clean"][:, None].expand_as(noise)
        noised, target = self.schedule.add_noise(clean, noise, level), self.schedule.target(clean, noise, level)
        seen = {"seen": batch.tensors["seen"].repeat_interleave(noise.shape[1], 0)}
        prediction = self.denoise(noised.flatten(0, 1), self.schedule.timestep(level).flatten(), seen)
        return prediction.reshape(target.shape), target

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        """Return ``log_probs`` ``[N, D, K]``, a decision per chunk; of whole rollouts ``[N, D, 1]``, and of sampler steps
        ``[N, 1, T]``, their log-densities.

        Extras "predictions" and "targets" ``[N, D, K, H, A]`` are laid out for means over all that follows D: 0 where an action
        is not real, and elsewhere larger by so much that the mean of squares is that over the real ones.
        """
        if "transitions" in batch.tensors:
            if "predictions" in want:
                raise TrainingError(
                    "this objective noises whole responses, but these rollouts are sampler steps; draw them by sampler.kind: ode"
                )
            return score_transitions(self, batch)
        prediction, target = self.predict(batch)
        real, (row, number) = batch.tensors["real"], batch.tensors["place"].unbind(1)
        count, draws, decisions = batch.mask.shape
        with torch.autocast(prediction.device.type, enabled=False):
            squared = (target.float() - prediction.float()).square() * real[:, None, :, None]
            numbers = squared.new_zeros(count).index_add(0, row, real.sum(1) * float(self.spaces.actions))  # real ones, [N]
            size = numbers[row] if self.settings.reduction == "mean" else torch.ones_like(numbers[row])
            errors = squared.sum((2, 3)) / size[:, None]  # [P, D]
            chunk = number if decisions > 1 else torch.zeros_like(number)  # a whole rollout is one decision
            log_probs = errors.new_zeros(count, decisions, draws).index_put((row, chunk), -0.5 * errors, accumulate=True)
        extras = self._laid_out(batch, prediction.float(), target.float(), numbers) if "predictions" in want else {}
        return Scores(log_probs.transpose(1, 2), batch.mask, batch.kind, extras)

    def _laid_out(self, batch: Batch, prediction: Tensor, target: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """Return the extras; for whole rollouts "old_predictions" and "clean_scale" ``[N, D]`` too."""
        row, number = batch.tensors["place"].unbind(1)
        count, chunks = len(batch), int(number.max()) + 1
        slots = float(chunks * prediction[0, 0].numel())
        weight = (slots / numbers).sqrt()[row, None] * batch.tensors["real"]  # [P, H]

        def laid_out(values: Tensor) -> Tensor:
            blank = values.new_zeros(count, chunks, *values.shape[1:])
            return blank.index_put((row, number), values * weight[:, None, :, None]).transpose(1, 2)

        extras = {"predictions": laid_out(prediction), "targets": laid_out(target)}
        if "old_predictions" in batch.tensors:
            extras["old_predictions"] = laid_out(batch.tensors["old_predictions"])
            extras["clean_scale"] = self.schedule.clean_scale(batch.tensors["level"][number == 0])
        return extras

    def score_description(self) -> str:
        config = self.config
        cut = f"{config.observations}/{config.horizon}/{config.stride or config.execute}"
        return f"{super().score_description()}/chunks {cut}/{config.observation_scale}"

    # acting

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return one episode per rollout, as `chunk_playing.played` plays it; ``decoding`` as `DiffusionDecoding`."""
        return played(self, prompts, samples_per_prompt, seed, decoding_of(DiffusionDecoding, decoding))

    def decoding_at(self, decoding: dict[str, Any], round_number: int) -> dict[str, Any]:
        return decoding_of_round(DiffusionDecoding, decoding, round_number)

    @property
    def home(self) -> str:
        return self.config.environment

    def spaces_in(self, environment: str) -> Spaces:
        return self.spaces

    # files

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; ``policy.base`` takes the folder."""
        write_model(folder, self.state_dict(), self.config)

    def fingerprint(self) -> str:
        return weights_fingerprint(self.state_dict().items(), repr(self.spaces), self.score_description())


def build(config: DiffusionPolicyConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> DiffusionPolicy:
    """Return the policy at its starting weights: keyed by ``seed``, or those of ``config.base``."""
    with closing(open_environment(config.environment)) as environment:
        policy = DiffusionPolicy(config, Spaces.of(environment), seed)
    if config.base is not None:
        restore(policy, Path(config.base), fresh=())
    return policy.to(device)
