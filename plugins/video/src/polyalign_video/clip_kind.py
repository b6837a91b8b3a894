"""Clips as transformers processors take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyalign.policies.media_kinds import MediaKind
from polyalign_video.clip import Clip, at_rate, uniform
from polyalign_video.modality import VideoModality

PROBE_SIZES = ((4, 48, 64), (6, 64, 48))  # frames, height and width
Size = tuple[int, int, int, float]  # frames that are looked at, height, width, and their rate per second


class ClipKind(MediaKind):
    """Frames are chosen here, never by the processor: ``frames`` at most, spread evenly, or ``fps`` a second of them."""

    modality, plural, shrink = "video", "clips", "lower policy.frames"

    def __init__(self, placeholder: str, media_id: int, frames: int = 16, fps: float | None = None) -> None:
        super().__init__(placeholder, media_id)
        self.frames, self.fps = frames, fps
        self.codec = VideoModality()

    @property
    def settings(self) -> str:
        return f"{self.frames} frames, {self.fps} per second"

    def chosen(self, total: int, fps: float) -> np.ndarray:
        """Return the numbers of the frames that are looked at."""
        return uniform(total, self.frames) if self.fps is None else at_rate(total, fps, self.fps, self.frames)

    def size(self, data: bytes) -> Size:
        header = self.codec.header(data)
        count = len(self.chosen(header.frames, header.fps))
        return count, header.height, header.width, header.fps * count / header.frames

    def open(self, data: bytes) -> Clip:
        return self.codec.decode(data, self.chosen)

    def blank(self, size: Size) -> Clip:
        return Clip(np.zeros((*size[:3], 3), dtype=np.uint8), size[3])

    def probe(self, number: int) -> Clip:
        frames, height, width = PROBE_SIZES[number]
        ramp = np.add.outer(np.arange(frames) * 9, np.add.outer(np.arange(height) * 3, np.arange(width) * 2)) % 256
        return Clip(np.stack([ramp, ramp[..., ::-1], 255 - ramp], -1).astype(np.uint8), 2.0)

    def arguments(self, media: Sequence[Clip]) -> dict[str, Any]:
        about = [
            {
                "fps": clip.fps, "total_num_frames": len(clip), "frames_indices": list(range(len(clip))),
                "duration": clip.duration, "height": clip.frames.shape[1], "width": clip.frames.shape[2],
            }
            for clip in media
        ]  # fmt: skip
        return {"videos": [clip.frames for clip in media], "video_metadata": about, "do_sample_frames": False}
