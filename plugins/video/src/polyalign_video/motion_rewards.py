"""Rewards by rule for what moves in a clip: the move that was asked for, and how much changes from frame to frame."""

from __future__ import annotations

from polyalign.rewards.base import Judged, asked
from polyalign.rewards.rules.base import Verifier, within
from polyalign_video.config import MotionAmountConfig, MotionConfig
from polyalign_video.judged import clip_of
from polyalign_video.motion import amount, named_in, progress


class Motion(Verifier):
    """How far the clip makes the move that is configured, or that the prompt names, from 0 to 1 (`motion.progress`): frozen,
    reversed and shuffled clips lose."""

    name = "motion"
    config: MotionConfig

    def verify(self, item: Judged) -> float:
        move = self.config.move or named_in(asked(item.prompt))
        return self.config.no_move_named if move is None else progress(clip_of(item), move, self.config.least)


class MotionAmount(Verifier):
    """1 if the clip changes this much from frame to frame (`motion.amount`), else 0."""

    name = "motion_amount"
    config: MotionAmountConfig

    def verify(self, item: Judged) -> float:
        return within(amount(clip_of(item)), self.config.minimum, self.config.maximum)
