"""A head with a column per aspect, each trained by the feedback about it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyalign.errors import TrainingError, nearest
from polyalign.objectives.base import Term
from polyalign.objectives.reward_modeling.base import ANYBODY, Attachment, Reader, RewardModel, head, mask_of
from polyalign.objectives.reward_modeling_config import AspectsConfig
from polyalign.policies.base import Scores


class Aspects(RewardModel):
    """Base of reward models over several aspects. Their total reward is the sum of columns by ``aspect_weights``."""

    with_bias = False

    def __init__(self, config: AspectsConfig) -> None:
        super().__init__()
        self.config: AspectsConfig = config
        self.aspects: tuple[str, ...] = ()

    def in_data(self, attachment: Attachment) -> Sequence[str]:
        """Return the aspects that the training data speaks of."""
        raise NotImplementedError

    def build(self, attachment: Attachment) -> None:
        found = self.in_data(attachment)
        self.aspects = self.config.aspects or tuple(found)
        for aspect in (*self.config.aspects, *self.config.aspect_weights):
            if aspect not in found:
                known = ", ".join(map(repr, found)) or "none"
                raise TrainingError(f"no feedback is about the aspect {aspect!r}.{nearest(aspect, found)} The data has: {known}")
        if not self.aspects:
            raise TrainingError(f"the training data gives {type(self).__name__} nothing to learn: no feedback of its kind")
        self.head = head(attachment.sizes["hidden"], len(self.aspects), self.config.hidden_layers, bias=self.with_bias)

    def columns(self, scores: Scores) -> Tensor:
        """Return what the head gives, ``[N, A]``."""
        return self.head(scores.extras["hidden"])  # type: ignore[no-any-return]

    def rewards(self, scores: Scores, reader: Reader = ANYBODY) -> Tensor:
        values = self.scaled(self.columns(scores))
        if reader.aspect is None:
            return values @ self.weight_of_columns(values)
        if reader.aspect not in self.aspects:
            known = f"{nearest(reader.aspect, self.aspects)} It has learnt: {', '.join(self.aspects)}"
            raise TrainingError(f"the reward model knows no aspect {reader.aspect!r}.{known}")
        return values[:, self.aspects.index(reader.aspect)]

    def parts(self, scores: Scores) -> dict[str, Tensor]:
        return dict(zip(self.aspects, self.scaled(self.columns(scores)).unbind(1), strict=True))

    def scaled(self, columns: Tensor) -> Tensor:
        """Return what columns of the head are worth as rewards."""
        return columns

    def weight_of_columns(self, like: Tensor) -> Tensor:
        return like.new_tensor([self.config.aspect_weights.get(aspect, 1.0) for aspect in self.aspects])

    def one_hot(self, names: Sequence[str], like: Tensor) -> Tensor:
        """Return which column each name has, ``[E, A]`` bool; no column for aspects that are not learnt."""
        return torch.stack([mask_of(names, aspect, like.device) for aspect in self.aspects], 1)

    def terms(self, name: str, losses: Tensor, names: Sequence[str], weight: Tensor) -> dict[str, Term]:
        """Return a term per aspect from the losses ``[E, A]`` of feedback about the aspects ``names``, by ``weight`` ``[E]``."""
        counted = self.one_hot(names, losses) * weight[:, None]  # [E, A]
        sums = (torch.where(counted > 0, losses, 0.0) * counted).sum(0) * self.weight_of_columns(losses)
        return {f"{name}/{aspect}": Term(sums[at], counted[:, at].sum()) for at, aspect in enumerate(self.aspects)}
