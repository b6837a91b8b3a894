"""Rewards for pictures, applied to frames of clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polyalign.records.schema import Message
from polyalign.rewards.base import Judged, Reward, checked
from polyalign_video.clip import uniform
from polyalign_video.config import FrameRewardConfig
from polyalign_video.judged import clip_of


class FrameReward(Reward):
    """The weighted mean of a reward for pictures over evenly spread frames. Sparse frames and weights that fall off from the
    middle frame are what InstructVideo (arXiv 2312.12490) fine-tunes on; here the weights add up to 1."""

    name = "frames"

    def __init__(self, config: FrameRewardConfig) -> None:
        self.config = config
        self.inner: Reward = config.reward.build()

    def score(self, items: Sequence[Judged]) -> list[float]:
        clips = [clip_of(item) for item in items]
        chosen = [uniform(len(clip), self.config.frames) for clip in clips]
        frames = [
            Judged(item.prompt, Image.fromarray(clip.frames[number]), item.media, item.conditions, item.info, item.group)
            for item, clip, numbers in zip(items, clips, chosen)
            for number in numbers
        ]
        values = iter(checked(self.inner.name, self.inner.evaluate(frames), len(frames)).values)
        return [sum(weight * next(values) for weight in self.weights(len(numbers)).tolist()) for numbers in chosen]

    def on_tensors(self, media: Tensor, prompts: Sequence[tuple[Message, ...]]) -> Tensor:
        """``media``: clips ``[N, 3, F, H, W]`` float32 in [0, 1]. Raises `RewardError` if the inner reward has no gradient."""
        numbers = torch.from_numpy(uniform(media.shape[2], self.config.frames)).to(media.device)
        frames = media[:, :, numbers].transpose(1, 2)  # [N, K, 3, H, W]
        asked = [prompt for prompt in prompts for _ in range(len(numbers))]
        values = self.inner.on_tensors(frames.flatten(0, 1), asked).view(len(media), -1)
        return values @ torch.tensor(self.weights(len(numbers)), dtype=values.dtype, device=values.device)

    def weights(self, count: int) -> np.ndarray:
        """Return what each of ``count`` frames weighs, ``[K]``, adding up to 1."""
        weights = np.exp(-self.config.attenuation * np.abs(np.arange(count) - (count - 1) / 2))
        return weights / weights.sum()
