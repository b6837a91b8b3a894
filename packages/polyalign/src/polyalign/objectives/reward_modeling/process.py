"""Process reward models: a probability per step that it is right, and what to make of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors, Segments, Term
from polyalign.objectives.reward_modeling.base import ANYBODY, Attachment, Reader, RewardModel, head
from polyalign.objectives.reward_modeling_config import ProcessRewardConfig
from polyalign.policies.base import Scores

UNITS = ("steps", "tokens")


class ProcessReward(RewardModel):
    """Binary cross-entropy of each labelled step, read where the step ends (Lightman et al. 2023, arXiv 2305.20050; Sun et al.
    2024, arXiv 2403.09472).

    A segment of a response labels the stretch that ends at it: positive is right, negative wrong, 0 is neutral and left out.
    In ``steps`` it is read at the last of its steps, which for text are lines (`token_features.step_ends`), in ``tokens`` at
    its last token. Each label counts once; one that lies beyond a response that was cut costs nothing.

    The reward of a response: the smallest of its steps' probabilities, their product, the last, or their mean; 0 for a response
    without a step.
    """

    needs = frozenset({"states", "segments"})
    wants = frozenset({"states"})

    def __init__(self, config: ProcessRewardConfig | None = None) -> None:
        super().__init__()
        self.config: ProcessRewardConfig = config or ProcessRewardConfig()

    def build(self, attachment: Attachment) -> None:
        self.head = head(attachment.sizes["states"], 1, self.config.hidden_layers, bias=True)

    def logits(self, scores: Scores) -> Tensor:
        """Return the log-odds that all is right up to each decision, ``[N, T]``."""
        padding = ~scores.mask.any(1)[..., None]
        return self.head(scores.extras["states"].masked_fill(padding, 0.0))[..., 0]  # type: ignore[no-any-return]

    def steps(self, scores: Scores) -> list[Tensor]:
        """Return the probabilities of each sample's steps, in order: N tensors of as many numbers as it has steps."""
        right = torch.sigmoid(self.logits(scores))
        return [row[ends] for row, ends in zip(right, scores.extras["step_ends"])]

    def rewards(self, scores: Scores, reader: Reader = ANYBODY) -> Tensor:
        return torch.stack([aggregated(steps, self.config.aggregate) for steps in self.steps(scores)])

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"step": (sum of losses, number of labels)}``."""
        segments = feedback.segments
        sample, place, there = labelled_places(segments, scores.extras["step_ends"], scores.mask.any(1))
        logits = self.logits(scores)[sample, place]
        counted = segments.value != 0
        losses = F.binary_cross_entropy_with_logits(logits, (segments.value > 0).to(logits.dtype), reduction="none")
        return {"step": Term(torch.where(there & counted, losses, 0.0).sum(), counted.to(losses.dtype).sum())}

    def probabilities(self, margins: Tensor) -> None:
        """Steps being right says nothing of how often one response is preferred."""
        return None


def labelled_places(segments: Segments, ends: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (sample, decision, whether it exists), ``[S]`` each: where each label is read. ``ends``, ``mask`` ``[N, T]``.

    Raises `TrainingError` for units that do not count decisions.
    """
    if unknown := sorted(set(segments.unit) - set(UNITS)):
        raise TrainingError(f"segments are in {', '.join(unknown)}, but a process reward is read at {' or '.join(UNITS)}")
    last = segments.end.ceil().long() - 1  # the end itself is outside
    by_step = torch.tensor([unit == "steps" for unit in segments.unit], dtype=torch.bool, device=ends.device)
    wanted = torch.where(by_step[:, None], ends[segments.sample].cumsum(1) == last[:, None] + 1, False)
    wanted &= ends[segments.sample]
    place = torch.arange(mask.shape[1], device=mask.device)
    wanted |= ~by_step[:, None] & mask[segments.sample] & (place == last[:, None])
    there = wanted.any(1)
    return segments.sample, wanted.long().argmax(1) if mask.shape[1] else last * 0, there


def aggregated(steps: Tensor, how: str) -> Tensor:
    """Return one reward from the probabilities ``[S]`` of a response's steps; 0 if there is none."""
    if not len(steps):
        return steps.sum()
    match how:
        case "min":
            return steps.min()
        case "product":
            return steps.prod()
        case "last":
            return steps[-1]
        case "mean":
            return steps.mean()
    raise TrainingError(f"aggregate is {how!r}; expected min, product, last or mean")


def shaping(steps: Tensor, how: str = "min") -> Tensor:
    """Return the bonus of each step, ``[S]``, from the probabilities ``[S]``: ``m_t - m_(t-1)`` with ``m_0 = 1`` and ``m_t`` the
    smallest so far (``min``) or the product (``product``).

    They add up to ``m_S - 1``, so that they change no ranking of finished responses (potential-based shaping, Ng et al. 1999;
    with min as in easy-to-hard generalization, arXiv 2403.09472: ``min(0, s_t - m_(t-1))``).
    """
    if how not in ("min", "product"):
        raise TrainingError(f"shaping is by min or product, not {how!r}")
    level = steps.cummin(0).values.clamp(max=1.0) if how == "min" else steps.cumprod(0)
    return torch.diff(level, prepend=level.new_ones(1))
