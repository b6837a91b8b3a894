"""From a decoded clip to the pixels that a video VAE reads, and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polyalign_video.clip import Clip

READING = "frames spread evenly over the clip, the shorter side scaled by Lanczos, centre crop, [-1, 1]"


def to_pixels(clip: Clip, frames: int, height: int, width: int) -> Tensor:
    """Return ``[3, frames, height, width]`` float32 in [-1, 1]: frames spread evenly, repeated where the clip has fewer; the
    picture scaled until it covers the wanted size, the centre cut out."""
    numbers = ((np.arange(frames) + 0.5) * len(clip) / frames).astype(int)
    fitted = {number: _fitted(clip.frames[number], height, width) for number in sorted(set(numbers.tolist()))}
    pixels = np.stack([fitted[number] for number in numbers.tolist()])  # [F, H, W, 3]
    return torch.from_numpy(pixels.astype(np.float32)).permute(3, 0, 1, 2) / 127.5 - 1


def _fitted(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    scale = max(height / frame.shape[0], width / frame.shape[1])
    size = max(width, round(frame.shape[1] * scale)), max(height, round(frame.shape[0] * scale))
    picture = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(picture.crop((left, top, left + width, top + height)))


def to_clips(pixels: Tensor, fps: float) -> list[Clip]:
    """Return clips of ``pixels`` ``[N, 3, F, H, W]`` in [0, 1], rounded to 8 bits as diffusers does."""
    values = pixels.detach().float().cpu().permute(0, 2, 3, 4, 1).numpy()
    return [Clip((frames * 255).round().astype(np.uint8), fps) for frames in values]
