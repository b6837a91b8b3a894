"""Rewards raised by their own gradient, through the sampler of a denoising model: DRaFT-K and ReFL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import LongTensor, Tensor

from polyalign.errors import ConfigError
from polyalign.objectives.base import FeedbackTensors, Objective, Term
from polyalign.objectives.online_denoising_config import DRaFTConfig, ReFLConfig, RewardGradientConfig
from polyalign.policies.base import Batch, Policy, Scores
from polyalign.policies.sampling import GradientPlan
from polyalign.records.samples import Example
from polyalign.rewards.base import Reward


class RewardGradient(Objective):
    """Minus the reward of samples that the policy draws inside the step, with a gradient from pixels to weights.

    - ``draft_k`` (Clark et al. 2023, arXiv 2309.17400): the sampler runs to its end, and its last K steps keep their gradient;
      K = ``sampler.steps`` is DRaFT. AlignProp (arXiv 2310.03739) is the same with other K.
    - ``refl`` (Xu et al. 2023, arXiv 2304.05977, algorithm 1): each sample stops at a random late step and its response is
      predicted from there at once; ``weight * max(0, ceiling - r)``.

    Data are prompts. The noise of a sample is keyed by its prompt's draw key and the epoch. Steps with a gradient are
    checkpointed. The reward reads tensors (`Reward.on_tensors`); its own weights are frozen.
    """

    needs = frozenset({"sample_grad"})
    wants = frozenset({"samples"})

    def __init__(self, config: RewardGradientConfig | None = None) -> None:
        super().__init__()
        self.config = config or DRaFTConfig()
        self._reward: list[Reward] = []  # a list, so that a reward with modules in it is not taken for a part of this one
        self._seen: tuple[int, Tensor] = (0, torch.empty(0))  # rewards of the last scores, by their id: metrics report them

    @property
    def reward(self) -> Reward:
        """The reward, built when it is first asked for. Raises `ConfigError` if the recipe names none."""
        if not self._reward:
            if self.config.reward is None:
                raise ConfigError("objective.reward is missing; name a differentiable reward, {name: ..., and its options}")
            self._reward.append(self.config.reward.build())
        return self._reward[0]

    def attach(self, policy: Policy, data: Iterable[Example]) -> None:
        reward = self.reward  # now, not at the first step
        if type(reward).on_tensors is Reward.on_tensors:
            raise ConfigError(
                f"objective.reward {reward.name!r} is not differentiable: it has no on_tensors. Use another, or an objective "
                "that needs no gradient of the reward (grpo, diffusion_nft, awm)"
            )

    def arranged(self, batch: Batch) -> Batch:
        last = self.config.last if isinstance(self.config, DRaFTConfig) else None
        late = self.config.late if isinstance(self.config, ReFLConfig) else None
        return replace(batch, tensors={**batch.tensors, "plan": GradientPlan(self.config.sampler, last, late)})

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return the term ``reward``: the mean over samples of ``-weight * r``, or of ``weight * max(0, ceiling - r)``."""
        rewards = self.reward.on_tensors(scores.extras["samples"].float(), scores.extras["prompts"])
        self._seen = id(scores), rewards.detach()
        losses = -rewards if self.config.ceiling is None else (self.config.ceiling - rewards).clamp(min=0)
        return {"reward": Term(self.config.weight * losses.sum(), self.weights(scores.mask, scores.kind, feedback)["reward"])}

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        return {"reward": torch.tensor(float(len(scores_mask)), device=scores_mask.device)}

    def metrics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term]:
        known, rewards = self._seen
        assert known == id(scores)
        return {"reward": Term(rewards.sum(), torch.tensor(float(len(rewards)), device=rewards.device))}
