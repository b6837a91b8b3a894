"""The encoder of motion, and a reward model on it that judges clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polyalign.config import load_recipe
from polyalign.encoders import build_encoder
from polyalign.policies.encoder_features import build
from polyalign.policies.encoder_features_config import EncoderFeaturesConfig
from polyalign.rewards.base import Judged
from polyalign.rewards.config import RewardSlot
from polyalign.training.config import Slot
from polyalign.training.run import train
from polyalign_video.clip import Clip
from polyalign_video.fixture import drawing


def test_reversing_a_clip_turns_how_lopsided_it_is_and_leaves_how_much_it_changes() -> None:
    """A square that appears at once and fades: the changes are the same backwards, their third moments have the other sign."""
    frames = np.full((8, 32, 32, 3), 255, np.uint8)
    for number, grey in enumerate((255, 0, 40, 80, 120, 160, 200, 240)):
        frames[number, 8:24, 8:24] = grey
    clips = [Clip(frames, 4.0), Clip(frames[::-1], 4.0), Clip(frames[:1].repeat(8, 0), 4.0)]
    forward, backward, frozen = build_encoder(Slot(name="motion-profile")).encode_media(clips)
    torch.testing.assert_close(forward[:64], backward[:64])
    torch.testing.assert_close(forward[64:], -backward[64:])
    assert forward[64:].abs().max() > 0.5 and frozen[64:].abs().max() == 0 and (frozen[:64] <= forward[:64]).all()
    assert build(EncoderFeaturesConfig(encoder=Slot(name="motion-profile"))).inputs == {"video"}


@pytest.mark.slow
def test_a_run_of_the_recipe_judges_decoded_clips(tmp_path: Path) -> None:
    train(
        load_recipe("video/reward-order", ["training.steps=2", "data.train.0.limit=8", "data.eval.0.limit=4"]), tmp_path / "run"
    )
    reward = RewardSlot.model_validate({"name": "reward_model", "run": str(tmp_path / "run")}).build()
    moving, still = reward.score([Judged((), drawing(move, 8, 32)) for move in ("left", "still")])
    assert np.isfinite([moving, still]).all() and moving != still
