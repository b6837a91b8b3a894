"""Clips of one coloured shape that moves in one way over white, and captions that name them: what `zoo:tiny-t2v` learns from."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from polyalign_video.motion import MOVES

SIDE, FRAMES, FPS = 32, 8, 4.0
COLOURS = {
    "red": (220, 30, 30), "orange": (250, 150, 20), "yellow": (235, 210, 30), "green": (30, 160, 60), "blue": (40, 80, 220),
    "purple": (140, 50, 170),
}  # fmt: skip
SHAPES = ("disc", "square", "triangle")
HELD_OUT = frozenset({("red", "triangle"), ("orange", "disc"), ("green", "square"), ("blue", "triangle"), ("purple", "disc")})
THINGS = tuple(itertools.product(COLOURS, SHAPES))
TRAINED = tuple(thing for thing in THINGS if thing not in HELD_OUT)


def caption(colour: str, shape: str, move: str | None) -> str:
    """Return "a red disc moves left", or without a move only what is shown."""
    return f"a {colour} {shape}" + (f" {MOVES[move]}" if move else "")


def clip(colour: str, shape: str, move: str, generator: torch.Generator) -> Tensor:
    """Return ``[3, F, H, W]`` float32 in [0, 1]; place across the way, size and length of the way are drawn."""
    draw = torch.rand(4, generator=generator).tolist()
    way = torch.linspace(-0.5, 0.5, FRAMES) * (0.36 + 0.14 * draw[0])  # of the side
    x, y = (torch.full((FRAMES,), 0.42 + 0.16 * value) for value in draw[1:3])
    radius = torch.full((FRAMES,), 0.17 + 0.05 * draw[3])
    if move in ("left", "right"):
        x = 0.5 + way * (1 if move == "right" else -1)
    elif move in ("up", "down"):
        y = 0.5 + way * (1 if move == "down" else -1)  # rows count downwards
    elif move in ("grows", "shrinks"):
        radius = 0.22 + 0.5 * way * (1 if move == "grows" else -1)
    inside = cover(shape, x, y, radius)[None]  # [1, F, H, W]
    colours = torch.tensor(COLOURS[colour])[:, None, None, None] / 255
    return inside * colours + (1 - inside)


def cover(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Return ``[N, H, W]``: how much of each pixel a shape covers; ``x``, ``y`` and ``radius`` ``[N]`` in shares of the side."""
    place = (torch.arange(SIDE) + 0.5) / SIDE
    right, down = place[None, None, :] - x[:, None, None], place[None, :, None] - y[:, None, None]  # [N, H, W]
    size = radius[:, None, None]
    if shape == "disc":
        outside = (right.square() + down.square()).sqrt() - size
    elif shape == "square":
        outside = torch.maximum(right.abs(), down.abs()) - 0.88 * size
    else:
        outside = torch.maximum(down - 0.9 * size, (2 * right.abs() - down - 1.1 * size) / 5**0.5)
    return (0.5 - outside * SIDE).clamp(0, 1)  # one pixel of soft edge


def thing_in(frame: Tensor) -> tuple[str, str] | None:
    """Return colour and shape of the thing in a frame ``[H, W, 3]`` in [0, 1] before white: the colour nearest to that of its
    pixels, and the shape that, at its best place and size, covers most nearly the same pixels. None where there is nothing."""
    difference = 1 - frame
    weight = difference.mean(-1)
    if weight.max() < 0.2:
        return None
    solid = frame[weight > 0.6 * weight.max()].mean(0)
    colour = min(COLOURS, key=lambda name: float((torch.tensor(COLOURS[name]) / 255 - solid).square().sum()))
    full = 1 - torch.tensor(COLOURS[colour]) / 255
    covered = (difference @ full / full.square().sum()).clamp(0, 1)  # [H, W]
    rows, columns = ((covered.sum(axis) * (torch.arange(SIDE) + 0.5)).sum() / covered.sum() / SIDE for axis in (1, 0))
    shifts, sizes = torch.linspace(-0.06, 0.06, 7), torch.linspace(0.06, 0.4, 35)
    down, right, radius = (grid.flatten() for grid in torch.meshgrid(shifts, shifts, sizes, indexing="ij"))
    errors = {
        shape: (cover(shape, columns + right, rows + down, radius) - covered).square().sum((1, 2)).min() for shape in SHAPES
    }
    return colour, min(SHAPES, key=lambda shape: float(errors[shape]))
