"""Animated WebP, lossless, with every frame kept.

Pillow's writer joins equal neighbours into one longer frame, so a frozen clip would come back as one frame. Here each frame
is a chunk of its own: the rectangle that changed since the frame before (WebP container specification, chunks VP8X, ANIM, ANMF).
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

LARGEST = 1 << 14  # pixels per side of a WebP picture


def encode(frames: np.ndarray, fps: float) -> bytes:
    """Return the file of RGB frames ``[F, H, W, 3]`` uint8, which plays for ever. Frames last whole milliseconds."""
    height, width = frames.shape[1:3]
    if not 0 < max(height, width) <= LARGEST:
        raise ValueError(f"frames of {width} x {height} pixels do not fit animated WebP, at most {LARGEST} a side")
    ends = np.round(np.arange(len(frames) + 1) * 1000 / fps).astype(int)
    body = b"WEBP" + _chunk(b"VP8X", bytes([2, 0, 0, 0]) + _three(width - 1) + _three(height - 1))
    body += _chunk(b"ANIM", b"\xff\xff\xff\xff" + struct.pack("<H", 0))
    for (left, top, picture), duration in zip(_changes(frames), np.diff(ends).tolist(), strict=True):
        place = _three(left // 2) + _three(top // 2) + _three(picture.shape[1] - 1) + _three(picture.shape[0] - 1)
        # Flags 2: the pixels replace what is there (no blending), and stay.
        body += _chunk(b"ANMF", place + _three(max(1, duration)) + bytes([2]) + _still(picture))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _changes(frames: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield left, top and pixels of what changes with each frame, at even coordinates; at least one pixel."""
    yield 0, 0, frames[0]
    for before, now in itertools.pairwise(frames):
        changed = (before != now).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        top, left = (int(found[0]) // 2 * 2 if len(found) else 0 for found in (rows, columns))
        bottom, right = (int(found[-1]) + 1 if len(found) else 1 for found in (rows, columns))
        yield left, top, now[top:bottom, left:right]


def _still(picture: np.ndarray) -> bytes:
    """Return the bitstream chunk of one lossless picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=True, quality=100, method=4)
    return buffer.getvalue()[12:]  # behind "RIFF", the length and "WEBP"


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]
