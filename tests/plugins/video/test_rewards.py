"""Rewards for clips: the asked move wins, and frozen, reversed and shuffled clips lose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from polyalign.errors import MediaError
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign.rewards.config import RewardSlot
from polyalign_video.clip import Clip
from polyalign_video.fixture import drawing
from polyalign_video.motion import MOVES, OPPOSITE, amount, move_of, named_in, progress


def judged(prompt: str, clip: object) -> Judged:
    return Judged((Message(role="user", parts=prompt),), clip)


def score(reward: dict[str, object] | str, items: Sequence[Judged]) -> list[float]:
    return list(RewardSlot.model_validate(reward).build().score(items))


def turned(clip: Clip, order: Sequence[int]) -> Clip:
    return Clip(clip.frames[list(order)], clip.fps)


@pytest.mark.parametrize("move", OPPOSITE)
def test_the_asked_move_beats_the_opposite_frozen_and_shuffled(move: str) -> None:
    clip = drawing(move, frames=8, side=32)
    frozen, shuffled = turned(clip, [4] * 8), turned(clip, [3, 6, 0, 5, 1, 7, 2, 4])
    items = [judged(f"the square {MOVES[move]}", found) for found in (clip, turned(clip, range(7, -1, -1)), frozen, shuffled)]
    whole, backwards, still, mixed = score("motion", items)
    assert whole > 0.9 and backwards == still == 0 and mixed < 0.5
    assert move_of(clip) == move and move_of(frozen) == "still" and move_of(turned(clip, range(7, -1, -1))) == OPPOSITE[move]


def test_a_way_is_measured_in_shares_of_the_side() -> None:
    """A square of 8 pixels goes 16 of 32: half the side. Asked for a whole side, it made half."""
    clip = drawing("right", frames=8, side=32)
    assert progress(clip, "right", 0.5) == pytest.approx(1, abs=0.02) and progress(clip, "right", 1.0) == pytest.approx(
        0.5, abs=0.01
    )


def test_an_empty_clip_makes_no_move_and_a_prompt_may_name_none() -> None:
    blank = Clip(np.full((8, 16, 16, 3), 255, np.uint8), 4.0)
    assert score("motion", [judged("it moves left", blank), judged("a square", blank)]) == [0.0, 0.5]
    assert score({"name": "motion", "move": "still"}, [judged("", drawing("still"))]) == [1.0]
    assert named_in("It Moves Up, then moves down") == "up" and named_in("it growls") is None


def test_the_amount_of_motion_has_limits() -> None:
    clips = [drawing("left"), drawing("still")]
    items = [judged("", clip) for clip in clips]
    assert amount(clips[1]) == 0 and score({"name": "motion_amount", "minimum": 0.01}, items) == [1.0, 0.0]
    assert score({"name": "motion_amount", "maximum": 0.01}, items) == [0.0, 1.0]


def test_temporal_consistency_falls_with_shuffling_and_may_refuse_frozen_clips() -> None:
    clip = drawing("left", frames=8, side=32)
    items = [judged("", found) for found in (clip, turned(clip, [3, 6, 0, 5, 1, 7, 2, 4]), turned(clip, [4] * 8))]
    whole, shuffled, frozen = score("temporal_consistency", items)
    assert shuffled < whole < frozen == 1
    assert whole == pytest.approx(1 - np.abs(np.diff(clip.frames.astype(float), axis=0)).mean() / 255)
    assert score({"name": "temporal_consistency", "least_motion": 1e-3}, items)[2] == 0


def test_frames_weigh_a_picture_reward_with_less_towards_the_ends() -> None:
    """The red share of three frames is 1, 0 and 0; weights exp(-d) at distances 1, 0 and 1 from the middle."""
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    frames[0], frames[1:] = (220, 30, 40), (30, 60, 220)
    inner = {"name": "colour_rule", "colour": "red"}
    items = [judged("", Clip(frames, 3.0))]
    assert score({"name": "frames", "reward": inner, "frames": 3}, items) == [pytest.approx(1 / 3)]
    expected = np.exp(-1) / (1 + 2 * np.exp(-1))
    assert score({"name": "frames", "reward": inner, "frames": 3, "attenuation": 1.0}, items) == [pytest.approx(expected)]


def test_frames_pass_gradients_to_a_differentiable_picture_reward() -> None:
    """On tensors as on files; frames that are not looked at get no gradient."""
    clip = drawing("left", frames=4, side=16, seed=3)
    reward = RewardSlot.model_validate({"name": "frames", "reward": {"name": "tint", "colour": "red"}, "frames": 2}).build()
    media = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float().div(255).requires_grad_()  # [1, 3, F, H, W]
    item = judged("", clip)
    value = reward.on_tensors(media, [item.prompt])
    assert value.item() == pytest.approx(reward.score([item])[0], abs=1e-5)
    value.sum().backward()
    assert [bool(media.grad[0, :, frame].abs().sum() > 0) for frame in range(4)] == [False, True, False, True]  # type: ignore[index]


def test_pictures_are_refused_by_name() -> None:
    with pytest.raises(MediaError, match="the response is a Image; expected a clip"):
        score("motion", [judged("it moves left", Image.new("RGB", (8, 8)))])
