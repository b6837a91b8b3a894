"""Online objectives that noise finished responses again: any sampler may have drawn them, and no step is scored.

Both read what `DenoisingPolicy` gives for rollouts of ``sampler.kind: ode``: predictions and targets of D draws of (t, noise)
per response, and the predictions that the weights made there which drew the response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import LongTensor, Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import Experience, FeedbackTensors, Objective, Term, Total, alone
from polyalign.objectives.online_config import GRPOConfig
from polyalign.objectives.online_denoising_config import AWMConfig, DiffusionNFTConfig
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.policies.base import Scores

SMALLEST_ERROR = 1e-5  # under which a mean absolute error no longer divides


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean over dimensions of the square, ``[N, D]`` of ``[N, D, ...]``."""
    return difference.square().flatten(2).mean(-1)


def old_predictions(scores: Scores) -> Tensor:
    """Return the predictions of the weights that drew the responses. Raises `TrainingError` where nobody kept them."""
    if "old_predictions" not in scores.extras:
        raise TrainingError("these samples are no rollouts: nobody kept what the network predicted when they were drawn")
    old: Tensor = scores.extras["old_predictions"]
    return old


class DiffusionNFT(Objective):
    """DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117, eq. 5): good responses draw the prediction, bad ones push it.

    With p the prediction, o that of the weights that drew the response, and ``r = clip(A / (2 c) + 1/2, 0, 1)`` how good it is,
    the loss of a draw is ``r |p+ - target|^2 + (1 - r) |p- - target|^2`` with ``p+ = (1 - beta) o + beta p`` and
    ``p- = (1 + beta) o - beta p``: a policy better than the old one by p - o, and its mirror image. As published, errors are
    those of the clean latents that the predictions imply, each divided by its mean absolute value (``adaptive``), and the
    loss is multiplied by c / beta: without ``adaptive`` its gradient at p = o is then that of ``A |p - target|^2``, whatever
    beta is, and whatever c is above |A|.

    A is the reward less the mean of the prompt's responses, divided by ``scale``. The old policy is the one of the round's
    start, or with ``online.lag``, as published, an average that lags further behind. ``kl_weight`` adds ``|p - p_ref|^2``.
    """

    needs = frozenset({"rollouts", "predictions"})
    wants = frozenset({"predictions"})
    appraises_with = frozenset[str]()

    def __init__(self, config: DiffusionNFTConfig | None = None) -> None:
        super().__init__()
        self.config = config or DiffusionNFTConfig()
        self.advantages = PolicyGradient(GRPOConfig(scale=self.config.scale))
        if self.config.kl_weight:
            self.needs, self.reference_wants = self.needs | {"reference"}, frozenset({"predictions"})

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return the terms ``policy`` and, with ``kl_weight``, ``kl``; each a mean over samples."""
        weights = self.weights(scores.mask, scores.kind, feedback)
        experience = feedback.experience
        if experience is None:
            return {name: Term(scores.log_probs.new_zeros(()), weight) for name, weight in weights.items()}
        prediction, target, old = scores.extras["predictions"], scores.extras["targets"], old_predictions(scores)
        beta, limit = self.config.beta, self.config.advantage_clip
        good = (experience.advantages / (2 * limit) + 0.5).clamp(0, 1)[:, None]  # [N, 1]
        toward = self._error((1 - beta) * old + beta * prediction - target, scores)
        away = self._error((1 + beta) * old - beta * prediction - target, scores)
        losses = (good * toward + (1 - good) * away) * limit / beta  # [N, D]
        sums = {"policy": losses.mean(1).sum()}
        if "kl" in weights:
            gap = mean_square(prediction - references["reference"].extras["predictions"])
            sums["kl"] = self.config.kl_weight * gap.mean(1).sum()
        return {name: Term(value, weights[name]) for name, value in sums.items()}

    def _error(self, difference: Tensor, scores: Scores) -> Tensor:
        scale: Tensor = scores.extras["clean_scale"]  # [N, D]
        error = scale.square() * mean_square(difference)
        if not self.config.adaptive:
            return error
        size = scale * difference.detach().abs().flatten(2).mean(-1)
        return error / size.clamp(min=SMALLEST_ERROR)

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        count = torch.tensor(0.0 if feedback.experience is None else float(len(scores_mask)), device=scores_mask.device)
        return {"policy": count} | ({"kl": count} if self.config.kl_weight else {})

    def appraise(self, experience: Experience, mask: Tensor, group: LongTensor, total: Total = alone) -> Experience:
        return self.advantages.appraise(experience, mask, group, total)

    def metrics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term]:
        if feedback.experience is None:
            return {}
        moved = mean_square(scores.extras["predictions"].detach() - old_predictions(scores)).mean(1)
        return {"distance_to_old": Term(moved.sum(), torch.tensor(float(len(moved)), device=moved.device))}


class AWM(PolicyGradient):
    """Advantage Weighted Matching (Xue et al. 2025, arXiv 2509.25050): the clipped policy gradient on the matching loss.

    A score s is minus half the mean squared error of a draw. Its ratio ``exp(beta (s - s_old))`` stands where a likelihood's
    would, so that at the round's start the gradient is that of ``A * beta/2 * error``: the loss of pretraining, weighted by
    the advantage. Advantages and clipping are those of `PolicyGradient`. ``prediction_weight`` and
    ``old_prediction_weight`` add the squared distance to the predictions of the reference and of the round's start.
    """

    config: AWMConfig

    def __init__(self, config: AWMConfig | None = None) -> None:
        super().__init__(config or AWMConfig())
        self.needs, self.wants = self.needs | {"predictions"}, self.wants | {"predictions"}
        if self.config.prediction_weight:
            self.needs, self.reference_wants = self.needs | {"reference"}, frozenset({"predictions"})

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return the term ``policy`` and the distances that have a weight, ``reference_distance`` and ``old_distance``."""
        scaled, experienced = self._scaled(scores, feedback)
        terms = super().forward(scaled, references, experienced, statistics)
        if feedback.experience is None:
            return terms
        count, prediction = self._count(scores.mask, feedback), scores.extras["predictions"]
        if self.config.prediction_weight:
            gap = mean_square(prediction - references["reference"].extras["predictions"]).mean(1).sum()
            terms["reference_distance"] = Term(self.config.prediction_weight * gap, count)
        if self.config.old_prediction_weight:
            gap = mean_square(prediction - old_predictions(scores)).mean(1).sum()
            terms["old_distance"] = Term(self.config.old_prediction_weight * gap, count)
        return terms

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        found, count = super().weights(scores_mask, kind, feedback), self._count(scores_mask, feedback)
        if self.config.prediction_weight:
            found["reference_distance"] = count
        if self.config.old_prediction_weight:
            found["old_distance"] = count
        return found

    def metrics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term]:
        scaled, experienced = self._scaled(scores, feedback)
        return super().metrics(scaled, {}, experienced)  # a divergence from the reference would want likelihoods

    def _scaled(self, scores: Scores, feedback: FeedbackTensors) -> tuple[Scores, FeedbackTensors]:
        """Return scores, and the old ones in the feedback, as the ratio compares them."""
        beta, experience = self.config.beta, feedback.experience
        if experience is not None and experience.old_log_probs is not None:
            feedback = replace(feedback, experience=replace(experience, old_log_probs=beta * experience.old_log_probs))
        return replace(scores, log_probs=beta * scores.log_probs), feedback

    def _count(self, mask: Tensor, feedback: FeedbackTensors) -> Tensor:
        return torch.tensor(0.0 if feedback.experience is None else float(len(mask)), device=mask.device)
