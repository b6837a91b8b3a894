"""Trajectories as chunks of actions under noise: the CPU side of a diffusion policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polyalign.policies.base import Batch, Kind, Noised, Rollout, Transition
from polyalign.policies.denoising_collator import DenoisingCollator
from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.schedules import Schedule
from polyalign.policies.transitions import noised_decisions, rollout_sample
from polyalign.randomness import keyed_generator, keyed_seed
from polyalign.records.samples import Sample
from polyalign_action.diffusion_config import DiffusionPolicyConfig
from polyalign_action.environments import Spaces
from polyalign_action.policy import TrajectoryCollator

NEARLY_NOISE = 0.95  # of a quarter turn: where noise prediction stops, since nothing clean can be told from its last level


class ChunkCollator(DenoisingCollator):
    """Cuts trajectories into chunks. With N samples of at most K chunks, P chunks in all, of H actions of A numbers each, D draws
    and W observations of F numbers before a chunk, a batch of data or of whole rollouts has

    - ``clean`` ``[P, H, A]`` in half-widths of the action's range; ``real`` ``[P, H]``: past the end of an episode its last
      action stands again and again, is not real and never counts;
    - ``seen`` ``[P, W * F]``: before the beginning of an episode its first observation stands;
    - ``place`` ``[P, 2]``: sample of the chunk, and its number there;
    - ``level`` ``[P, D]`` and ``noise`` ``[P, D, H, A]``.

    In data every chunk is a decision, with noise and level of its own, keyed by the step it begins with: chosen, rejected and
    reference share them. In whole rollouts a draw has one level for all chunks and is one decision.
    """

    config: DiffusionPolicyConfig

    def __init__(self, spaces: Spaces, config: DiffusionPolicyConfig, seed: int) -> None:
        super().__init__(FeatureCache(), schedule_of(config), config, seed)
        self.reader = TrajectoryCollator(spaces, config.goal, config.instruction)
        half_widths = torch.tensor(spaces.half_widths())
        middles = [(high + low) / 2 if math.isfinite(high - low) else 0.0 for low, high in zip(spaces.low, spaces.high)]
        self.half_widths, self.middles = half_widths, torch.tensor(middles)

    # features: what is read of a trajectory once

    def latent_key(self, sample: Sample) -> str:
        return f"{keyed_seed('actions', sample.content_key(), str(self.half_widths.tolist()), str(self.middles.tolist())):016x}"

    def condition_key(self, sample: Sample) -> str:
        return f"{keyed_seed('states', sample.content_key(), self.config.goal, self.config.instruction):016x}"

    def scaled(self, actions: Tensor) -> Tensor:
        """Return actions as the network sees them: within [-1, 1] where their range has bounds."""
        return (actions - self.middles) / self.half_widths

    def unscaled(self, actions: Tensor) -> Tensor:
        return actions * self.half_widths + self.middles

    def cost(self, sample: Sample) -> int:
        """Return the number of actions under noise."""
        stride = self.config.stride or self.config.execute
        return -(-self.reader.cost(sample) // stride) * self.config.horizon * self.config.draws

    # batches

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        parts: list[dict[str, Tensor]] = []
        stride = self.config.stride or self.config.execute
        for row, sample in enumerate(samples):
            actions = self.load(self.latent_key(sample), sample, "actions")["mean"]  # [T, A]
            states = self.load(self.condition_key(sample), sample, "observations")["states"]  # [T, F]
            starts = range(0, len(actions), stride)
            steps = torch.tensor(starts)[:, None] + torch.arange(self.config.horizon)  # [K, H]
            drawn = [[(sample.draw_key, draw, f"chunk {start}") for draw in self.draws(sample.epoch)] for start in starts]
            levels = [[self._level(*key) for key in mine] for mine in drawn]
            noise = torch.stack([torch.stack([self._noise(*key, actions.shape[1]) for key in mine]) for mine in drawn])
            parts.append(
                {
                    "clean": actions[steps.clamp(max=len(actions) - 1)],
                    "real": steps < len(actions),
                    "seen": self.windows(states, starts),
                    "place": torch.tensor([(row, number) for number in range(len(starts))]),
                    "level": torch.tensor(levels),
                    "noise": noise,
                }
            )
        counts = torch.tensor([len(part["clean"]) for part in parts])
        mask = torch.arange(int(counts.max()))[None] < counts[:, None]
        draws = mask[:, None].expand(-1, self.config.draws, -1)
        return _batch(samples, parts, draws, self.cache_keys(samples))

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        """Return a batch that scores what these rollouts decided: sampler steps of every chunk, or keyed draws of noise on all of
        their chunks, with "old_predictions" ``[P, D, H, A]`` of the weights that drew them."""
        samples = [rollout_sample(rollout, row) for row, rollout in enumerate(rollouts)]
        return self._noised(rollouts, samples) if noised_decisions(rollouts) else self._steps(rollouts, samples)

    def _noised(self, rollouts: Sequence[Rollout], samples: list[Sample]) -> Batch:
        parts = []
        for row, rollout in enumerate(rollouts):
            decisions = [decision for decision in rollout.decisions if isinstance(decision, Noised)]
            clean, key = decisions[0].clean, decisions[0].key  # [K, H, A]
            assert clean is not None and len(decisions) == self.config.draws
            samples[row] = replace(samples[row], draw_key=key)
            chunks, draws = range(len(clean)), self.draws(0)
            noise = [[self._noise(key, draw, f"chunk {number}", clean.shape[2]) for draw in draws] for number in chunks]
            part = {
                "clean": clean,
                "real": torch.ones(clean.shape[:2], dtype=torch.bool),  # what was drawn and not done was drawn all the same
                "seen": self.seen_in(rollout),
                "place": torch.tensor([(row, number) for number in chunks]),
                "level": torch.tensor([int(decision.t) for decision in decisions]).expand(len(clean), -1),
                "noise": torch.stack([torch.stack(mine) for mine in noise]),
            }
            if predictions := [decision.prediction for decision in decisions if decision.prediction is not None]:
                part["old_predictions"] = torch.stack(predictions, 1)  # [K, D, H, A]
            parts.append(part)
        mask = torch.ones(len(rollouts), self.config.draws, 1, dtype=torch.bool)
        return _batch(samples, parts, mask, None)

    def _steps(self, rollouts: Sequence[Rollout], samples: list[Sample]) -> Batch:
        steps, place, condition, seen = [], [], [], list[Tensor]()
        for row, rollout in enumerate(rollouts):
            mine = [decision for decision in rollout.decisions if isinstance(decision, Transition)]
            first, windows = sum(map(len, seen)), self.seen_in(rollout)
            steps += mine
            place += [(row, position) for position in range(len(mine))]
            condition += [first + position * len(windows) // len(mine) for position in range(len(mine))]
            seen.append(windows)
        counts = torch.tensor([len(rollout.decisions) for rollout in rollouts])
        mask = torch.arange(int(counts.max()))[None] < counts[:, None]
        tensors = {  # as `polyalign.policies.transitions.score_transitions` reads them
            "place": torch.tensor(place),
            "x_t": torch.stack([step.x_t for step in steps]),
            "x_next": torch.stack([step.x_next for step in steps]),
            "coefficients": torch.tensor([(step.state, step.prediction, step.std, step.t) for step in steps]),
            "guidance": torch.ones(len(steps)),
            "condition": torch.tensor(condition),
            "conditions": {"seen": torch.cat(seen)},
        }
        kind = torch.full(mask.shape, int(Kind.TRANSITION))
        return Batch(tuple(samples), {"transitions": [tensors]}, mask[:, None], kind)  # type: ignore[arg-type]

    def seen_in(self, rollout: Rollout) -> Tensor:
        """Return what the policy saw when it drew each chunk of a rollout, ``[K, W * F]``."""
        states = self.reader.states_of("a rollout", rollout.prompt, rollout.output)
        return self.windows(states, range(0, len(states), self.config.execute))

    def windows(self, states: Tensor, starts: Sequence[int]) -> Tensor:
        """Return the observations up to each of these steps, ``[K, W * F]``, of states ``[T, F]``."""
        back = torch.arange(1 - self.config.observations, 1)
        return states[(torch.tensor(starts)[:, None] + back).clamp(min=0)].flatten(1)

    def _level(self, draw_key: str, draw: tuple[str, int], chunk: str) -> int:
        return self.schedule.draw_level(self.config.timesteps, keyed_generator(self.seed, draw_key, *draw, "level", chunk))

    def _noise(self, draw_key: str, draw: tuple[str, int], chunk: str, size: int) -> Tensor:
        generator = keyed_generator(self.seed, draw_key, *draw, "noise", chunk)
        return torch.randn(self.config.horizon, size, generator=generator)


def schedule_of(config: DiffusionPolicyConfig) -> Schedule:
    """Return the schedule. ``auto`` is a flow: every level of it can be denoised in one linear step. The paper predicts noise and
    clips the clean actions that it implies within the sampler; steps here have densities and so do not clip."""
    if config.prediction in ("auto", "flow"):
        return Schedule.flow(config.levels)
    if config.prediction == "v_prediction":
        return Schedule.cosine(config.levels)
    turns = torch.linspace(0, NEARLY_NOISE, config.levels + 1)[1:] * math.pi / 2
    return Schedule.variance_preserving(turns.cos().square())


def _batch(
    samples: Sequence[Sample], parts: Sequence[dict[str, Tensor]], mask: Tensor, cache_keys: tuple[str, ...] | None
) -> Batch:
    tensors: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    kind = torch.full((len(mask), mask.shape[-1]), int(Kind.DENOISING))
    return Batch(tuple(samples), tensors, mask, kind, cache_keys)  # type: ignore[arg-type]
