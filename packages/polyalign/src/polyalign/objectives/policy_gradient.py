"""Policy gradients on the policy's own responses: GRPO and its relatives, RLOO, REINFORCE++."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import LongTensor, Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.advantages import (
    SMALLEST_DEVIATION,
    above_group_mean,
    deviation,
    group_deviation,
    leave_one_out,
    spread_out,
    to_come,
    whitened,
)
from polyalign.objectives.base import Experience, FeedbackTensors, Objective, Term, Total, alone
from polyalign.objectives.importance import clipped, divergence, log_ratios_to_old, outside, weighted
from polyalign.objectives.online_config import GRPOConfig, PolicyGradientConfig
from polyalign.objectives.supervised import negative_log_likelihood
from polyalign.policies.base import Scores


class PolicyGradient(Objective):
    """A surrogate of the expected reward: importance ratio times advantage, kept near the policy that responded.

    With ``rho`` the ratio of new to old likelihood (`importance`) and A the advantage (`advantages`), by configuration class:

    - ``grpo`` (arXiv 2402.03300, eq. 3): ``A = (R - mean) / (std + 1e-4)`` of the prompt's rewards, the clipped surrogate per
      decision, averaged over a response and then over responses.
    - ``dr_grpo`` (arXiv 2503.20783): no division by std; the sum over decisions divided by the longest response allowed, so
      that neither easy prompts nor short responses weigh more.
    - ``bnpo``: averaged over all decisions of the step. ``dapo`` (arXiv 2503.14476, eq. 8): the same with a higher upper clip;
      its dynamic sampling is ``online.resample``, its soft punishment of long responses ``online.overlong``.
    - ``gspo`` (arXiv 2507.18071, eq. 5): rho is the geometric mean over a response, clipped to a much smaller interval.
    - ``cispo`` (arXiv 2506.13585): the capped ratio is a weight on ``A log pi``, so that clipped decisions still learn.
    - ``rloo`` (arXiv 2402.14740): ``A = R - mean of the prompt's other rewards``, rho of the whole response; the sum over
      decisions of ``kl_weight * log(pi / pi_ref)`` is taken off R first.
    - ``reinforce_pp`` (arXiv 2501.03262): the reward still to come at each decision, KL penalties included, whitened over the
      whole round.

    TRL 1.16's GRPO and RLOO trainers compute the same; its ``bnpo`` and ``grpo`` average within a micro-batch first, so that
    its loss depends on how a step is split, and here it does not. Its ``dual_clip`` is called delta, its ``cispo`` has
    ``epsilon_high = 1 + clip_high``.

    In the ratio, D draws of one sample stay apart and are averaged after it. At the first pass over a round every ratio is 1.
    Samples without `Experience` are demonstrations: ``sft_weight`` times their negative log-probability, averaged over
    decisions, is added. There is no fixed value at the reference.
    """

    needs = frozenset({"rollouts"})
    config: PolicyGradientConfig

    def __init__(self, config: PolicyGradientConfig | None = None) -> None:
        super().__init__()
        self.config = config or GRPOConfig()
        if self.config.kl_weight:
            self.needs = self.needs | {"reference"}
        if self.config.entropy_weight:
            self.wants = self.wants | {"entropy"}
            self.needs = self.needs | {"entropy"}
        if self.config.sft_weight:
            self.needs = self.needs | {"demonstrations"}
        in_reward = self.config.kl_weight and self.config.kl_in == "reward"
        self.appraises_with = frozenset({"reference"} if in_reward else ())

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return the terms ``policy``, ``kl`` (if it is in the loss), ``entropy`` (if it earns a bonus) and ``sft``."""
        weights = self.weights(scores.mask, scores.kind, feedback)
        sums, nothing = self._sums(scores, references, feedback), scores.log_probs.new_zeros(())
        return {name: Term(sums.get(name, nothing), weight) for name, weight in weights.items()}

    def _sums(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Tensor]:
        """Return the sum of each term that this batch adds to."""
        experience = feedback.experience
        if experience is None:
            if not self.config.sft_weight:
                return {}
            everything = torch.ones_like(scores.log_probs[:, 0, 0])
            return {"sft": self.config.sft_weight * negative_log_likelihood(scores, everything).sum}
        ratio, advantages = self._ratio(scores, experience), _per_decision(experience.advantages)
        low, high = self.config.clip_low, self.config.clip_high
        if self.config.surrogate == "weight":
            losses = weighted(ratio, torch.where(scores.mask, scores.log_probs, 0.0), advantages, low, high)
        else:
            losses = clipped(ratio, advantages, low, high, self.config.dual_clip)
        sums = {"policy": self._sum(losses, scores.mask)}
        if self.config.kl_weight and self.config.kl_in == "loss":
            gap = divergence(scores.log_probs, references["reference"].log_probs, scores.mask, self.config.kl)
            sums["kl"] = self.config.kl_weight * self._sum(gap * ratio if self.config.kl_unbiased else gap, scores.mask)
        if self.config.entropy_weight:
            entropy = torch.where(scores.mask.any(1), scores.extras["entropy"], 0.0)  # [N, T]
            sums["entropy"] = -self.config.entropy_weight * entropy.sum()
        return sums

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        experience = feedback.experience
        none = torch.zeros((), device=scores_mask.device)
        count = none + (0.0 if experience is None else len(scores_mask))
        decisions = none if experience is None else scores_mask.sum().float()
        match self.config.average:
            case "sequence":
                weight = count
            case "token":
                weight = decisions
            case "constant":
                weight = count * (experience.longest if experience is not None else 0)
        found = {"policy": weight}
        if self.config.kl_weight and self.config.kl_in == "loss":
            found["kl"] = weight
        if self.config.entropy_weight:
            found["entropy"] = none if experience is None else scores_mask.any(1).sum().float()
        if self.config.sft_weight:
            found["sft"] = scores_mask.sum().float() if experience is None else none
        return found

    def _ratio(self, scores: Scores, experience: Experience) -> Tensor:
        if experience.old_log_probs is None:
            raise TrainingError(
                f"{type(self).__name__} compares new with old likelihoods, but these rollouts keep none; "
                "use an objective without a ratio (online_dpo), or a sampler that draws its steps at random"
            )
        return log_ratios_to_old(scores.log_probs, experience.old_log_probs, scores.mask, self.config.ratio).exp()

    def _sum(self, losses: Tensor, mask: Tensor) -> Tensor:
        """Return the sum that belongs to the weight of ``average``, of losses ``[N, D, T]`` or ``[N, D, 1]``."""
        losses = torch.where(mask, losses.expand(mask.shape), 0.0)
        if self.config.average == "token":
            return losses.sum()
        per_draw = losses.sum(-1)  # [N, D]
        if self.config.average == "sequence":
            per_draw = per_draw / mask.sum(-1).clamp(min=1)
        return (per_draw.sum(-1) / mask.any(-1).sum(-1).clamp(min=1)).sum()

    # advantages

    @torch.no_grad()
    def appraise(self, experience: Experience, mask: Tensor, group: LongTensor, total: Total = alone) -> Experience:
        rewards, scored = experience.rewards, mask.any(1)  # [N], [N, T]
        penalty = self._penalty(experience, mask)
        if self.config.advantage == "returns":
            paid = spread_out(rewards, scored, experience.decision_rewards) - penalty
            advantages = to_come(paid, scored, self.config.gamma)
            return replace(
                experience, advantages=whitened(advantages, scored, total) if self.config.scale == "batch" else advantages
            )
        rewards = rewards - penalty.sum(-1)
        if self.config.advantage == "leave_one_out":
            advantages = leave_one_out(rewards, group)
            if self.config.scale == "batch":
                advantages = whitened(advantages, torch.ones_like(advantages, dtype=torch.bool), total)
        else:
            advantages = above_group_mean(rewards, group)
            if self.config.scale != "none":
                spread = group_deviation(rewards, group) if self.config.scale == "group" else deviation(rewards, total)
                advantages = advantages / (spread + SMALLEST_DEVIATION)
        return replace(experience, advantages=advantages)

    def _penalty(self, experience: Experience, mask: Tensor) -> Tensor:
        """Return what each decision pays for leaving the reference, ``[N, T]``; 0 where that is not in the reward."""
        if "reference" not in (self.appraises_with or ()):
            return torch.zeros(mask[:, 0].shape, device=mask.device)
        assert experience.old_log_probs is not None and experience.reference_log_probs is not None
        gap = divergence(experience.old_log_probs, experience.reference_log_probs, mask, self.config.kl)
        return self.config.kl_weight * gap.sum(1) / mask.sum(1).clamp(min=1)

    # watching

    @torch.no_grad()
    def metrics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term]:
        """Return means over decisions: ``entropy`` (of the policy's distribution where it was computed, else the mean of
        ``-log pi``, which estimates it), ``kl`` to the reference and ``kl_to_old`` (k3 estimates); and ``clipped``, the share of
        ratios that clipping holds."""
        experience, nothing = feedback.experience, Term(torch.zeros(()), torch.zeros(()))
        names = ["entropy", "clipped", "kl_to_old", *(["kl"] if "reference" in references else [])]
        if experience is None or experience.old_log_probs is None:
            return dict.fromkeys(names, nothing)
        mask, count = scores.mask, scores.mask.sum()
        entropy = scores.extras.get("entropy")
        values = -scores.log_probs if entropy is None else entropy[:, None].expand(mask.shape)
        ratio = self._ratio(scores, experience)
        held = outside(ratio, _per_decision(experience.advantages), self.config.clip_low, self.config.clip_high)
        found = {
            "entropy": Term(torch.where(mask, values, 0.0).sum(), count),
            "clipped": Term((held.expand(mask.shape) & mask).sum(), count),
            "kl_to_old": Term(divergence(scores.log_probs, experience.old_log_probs, mask, "k3").sum(), count),
        }
        if "reference" in references:
            found["kl"] = Term(divergence(scores.log_probs, references["reference"].log_probs, mask, "k3").sum(), count)
        return found


def _per_decision(advantages: Tensor) -> Tensor:
    """Return advantages ``[N]`` or ``[N, T]`` as they multiply decisions ``[N, D, T]``."""
    return advantages[:, None, None] if advantages.ndim == 1 else advantages[:, None]
