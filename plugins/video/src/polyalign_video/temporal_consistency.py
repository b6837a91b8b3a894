"""How smoothly a clip goes on: the likeness of neighbouring frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from PIL import Image

from polyalign.encoders import build_encoder
from polyalign.rewards.base import Judged, Reward
from polyalign_video.clip import Clip
from polyalign_video.config import TemporalConsistencyConfig
from polyalign_video.judged import clip_of
from polyalign_video.motion import amount


class TemporalConsistency(Reward):
    """The mean likeness of neighbouring frames, at most 1: one minus the mean absolute difference of pixels, or the cosine of an
    encoder's embeddings (the subject consistency of VBench, arXiv 2311.17982, neighbours only). A frozen clip is as consistent
    as can be; ``least_motion`` refuses it."""

    name = "temporal_consistency"

    def __init__(self, config: TemporalConsistencyConfig) -> None:
        self.config = config
        self.encoder = build_encoder(config.encoder) if config.encoder else None

    def score(self, items: Sequence[Judged]) -> list[float]:
        return [self._of(clip_of(item)) for item in items]

    def _of(self, clip: Clip) -> float:
        if amount(clip) < self.config.least_motion:
            return 0.0
        if self.encoder is None:
            return 1 - amount(clip)
        if len(clip) == 1:
            return 1.0
        features = F.normalize(self.encoder.encode_media([Image.fromarray(frame) for frame in clip.frames]), dim=-1)  # [F, D]
        return float((features[1:] * features[:-1]).sum(-1).mean())
