"""PPO with a value head, and PPO-max: the switches that keep it from collapsing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import LongTensor, Tensor

from polyalign.objectives.advantages import SMALLEST_DEVIATION, generalised, moments, spread_out, whitened
from polyalign.objectives.base import Experience, FeedbackTensors, Total, alone
from polyalign.objectives.online_config import PPOConfig
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.policies.base import Scores


class PPO(PolicyGradient):
    """Proximal Policy Optimization with generalised advantage estimates (arXiv 1707.06347, arXiv 1506.02438).

    A decision is paid ``-kl_weight * log(pi_old / pi_ref)``, the last one the response's reward on top. Advantages are GAE,
    whitened over the round; the value term is ``1/2 max((V - R)^2, (clip(V, V_old +- value_clip) - R)^2)`` with R = A + V_old,
    A before whitening, averaged over decisions.

    ``ppo_max`` (Zheng et al. 2023, arXiv 2307.04964) sets: rewards normalised by the mean and standard deviation of ALL
    rewards so far, then clipped; a penalty per token; a value head that is trained first (``value_warmup`` rounds); clipped
    values; whitened advantages; the gradient clipped as a whole (``training.optimizer.max_grad_norm``); a likelihood term on
    other data (``sft_weight`` with ``online.demonstrations``). Their released script differs: no reward clip, KL 0.01, no
    likelihood term, ``rewards: scaled``. The paper's critic is a network of its own, initialised from the reward model; here
    it is a head on the policy's backbone.

    Rewards that come per decision are scaled only: neither shifted nor clipped, which would pay for the mere length.
    Running moments live in buffers, saved and resumed; standard deviations have n - 1.
    """

    needs = frozenset({"rollouts", "values"})
    wants = frozenset({"values"})
    config: PPOConfig
    seen: Tensor
    mean: Tensor
    squares: Tensor
    rounds: Tensor

    def __init__(self, config: PPOConfig | None = None) -> None:
        super().__init__(config or PPOConfig())
        self.appraises_with = (self.appraises_with or frozenset()) | {"values"}
        for name in ("seen", "mean", "squares"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.register_buffer("rounds", torch.zeros((), dtype=torch.long))

    def _sums(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Tensor]:
        found, experience = super()._sums(scores, references, feedback), feedback.experience
        if experience is not None:
            assert experience.returns is not None and experience.old_values is not None
            errors = self._value_errors(scores.extras["values"], experience.old_values, experience.returns)
            found["value"] = self.config.value_weight * torch.where(scores.mask.any(1), errors, 0.0).sum()
        return found

    def _value_errors(self, values: Tensor, old: Tensor, returns: Tensor) -> Tensor:
        """Return half the squared error of each value ``[N, T]``, the larger of the free and the clipped one's."""
        free = (values - returns).square()
        if self.config.value_clip is None:
            return free / 2
        near = old + (values - old).clamp(-self.config.value_clip, self.config.value_clip)
        return torch.maximum(free, (near - returns).square()) / 2

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        found, none = super().weights(scores_mask, kind, feedback), torch.zeros((), device=scores_mask.device)
        found["value"] = none if feedback.experience is None else scores_mask.any(1).sum().float()
        return found

    @torch.no_grad()
    def appraise(self, experience: Experience, mask: Tensor, group: LongTensor, total: Total = alone) -> Experience:
        assert experience.old_values is not None
        scored = mask.any(1)  # [N, T]
        scale, shift = self._scale(experience.rewards, total)
        rewards, per_decision = scale * (experience.rewards - shift), experience.decision_rewards
        if per_decision is not None:
            per_decision = scale * per_decision
        if self.config.reward_clip is not None:
            rewards = rewards.clamp(-self.config.reward_clip, self.config.reward_clip)
        paid = spread_out(rewards, scored, per_decision) - self._penalty(experience, mask)
        advantages = generalised(paid, experience.old_values, scored, self.config.gamma, self.config.gae_lambda)
        returns = advantages + experience.old_values
        if self.config.scale == "batch":
            advantages = whitened(advantages, scored, total)
        if self.config.advantage_clip is not None:
            advantages = advantages.clamp(-self.config.advantage_clip, self.config.advantage_clip)
        if self.rounds < self.config.value_warmup:
            advantages = torch.zeros_like(advantages)
        self.rounds += 1
        return replace(experience, advantages=advantages, returns=returns)

    def _scale(self, rewards: Tensor, total: Total) -> tuple[float, float]:
        """Return (factor, shift) for rewards, from all rewards so far, this round's included (Chan et al. 1983)."""
        number, mean, squares = (value.to(self.mean.device) for value in moments(rewards, total))
        both, gap = self.seen + number, mean - self.mean
        self.squares += squares + gap.square() * self.seen * number / both
        self.mean += gap * number / both
        self.seen += number
        if self.config.rewards == "raw":
            return 1.0, 0.0
        spread = float((self.squares / (self.seen - 1).clamp(min=1)).sqrt()) + SMALLEST_DEVIATION
        return 1 / spread, float(self.mean) if self.config.rewards == "normalised" else 0.0
