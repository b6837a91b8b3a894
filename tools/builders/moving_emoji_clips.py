"""The clips of `moving-emoji`: animated emoji sampled to a few frames, and still emoji moved along known paths."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from emoji_table import held_out_codes, read_entries
from PIL import Image

from polyalign.randomness import keyed_seed
from polyalign_video.clip import Clip, uniform
from polyalign_video.modality import VideoModality
from polyalign_video.motion import amount

SIDE, FRAMES, FPS = 32, 8, 4.0  # pixels, frames, and frames per second of the moves; animations keep their own duration
SPRITE, SMALL, LARGE = 16, 8, 24  # pixels: the moved emoji; from which to which it grows
SKIN_TONES = tuple(f"1f3f{digit}" for digit in "bcdef")
LEAST_AMOUNT = 0.012  # animations that move less look frozen at this size
LEAST_RISE = 1.3  # a shuffled order moves this much more than the true one, or it is not taken
LEAST_ASYMMETRY = 0.5  # the reversed order is this far from every rotation of the true one, in steps of the true one
MOVED_GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
MOVED, ANIMATED = 144, 360  # how many of each are taken


@dataclass(frozen=True)
class Emoji:
    """One emoji of the Fluent set: what it is called, and its animation, ``[8, 32, 32, 3]`` on white, or its still sprite."""

    hexcode: str
    caption: str
    group: str
    subgroup: str
    split: str
    animation: Clip | None
    sprite: Image.Image  # RGBA, cropped to what is opaque


def load(tarballs: Mapping[str, Path]) -> list[Emoji]:
    """Return every emoji without a skin tone that both the Fluent set and emojibase know, in Unicode order."""
    files = dict(_files([path for name, path in tarballs.items() if "fluent" in name]))
    entries = [(entry, subgroup) for entry, subgroup in read_entries(tarballs["emojibase-data"])]
    known = [(entry | {"subgroup": subgroup}, _find(files, entry["hexcode"])) for entry, subgroup in entries]
    known = [(entry, data) for entry, data in known if data is not None and ":" not in entry["label"]]
    held_out = held_out_codes([entry for entry, _ in known])
    return [
        Emoji(
            hexcode=entry["hexcode"].lower(),
            caption=entry["label"].lower().replace("’", "'").replace("“", "").replace("”", ""),
            group=entry["group"],
            subgroup=entry["subgroup"],
            split="test" if entry["hexcode"] in held_out else "train",
            animation=_animation(data),
            sprite=_sprite(data),
        )
        for entry, data in known
    ]


def moved(emoji: Emoji, move: str) -> Clip:
    """Return the emoji's sprite moved: "left" and so on by half the side, "grows" threefold; "still" stays in the middle."""
    share = np.linspace(-1, 1, FRAMES)  # from start to end
    reach = (SIDE - SPRITE) // 2 - 1
    step = {"right": (reach, 0), "left": (-reach, 0), "up": (0, -reach), "down": (0, reach)}.get(move, (0, 0))
    sizes = np.full(FRAMES, SPRITE)
    if move in ("grows", "shrinks"):
        sizes = np.round(np.linspace(SMALL, LARGE, FRAMES) / 2).astype(int) * 2
        sizes = sizes if move == "grows" else sizes[::-1]
    return Clip(np.stack([_placed(emoji.sprite, int(size), at * step[0], at * step[1]) for at, size in zip(share, sizes)]), FPS)


def frozen(clip: Clip) -> Clip:
    return Clip(np.repeat(clip.frames[len(clip) // 2][None], len(clip), 0), clip.fps)


def backwards(clip: Clip) -> Clip | None:
    """Return the clip reversed; None where that could pass for the clip itself begun elsewhere (a loop that swings)."""
    forward, reverse = (clip.frames.astype(np.float32) / 255, clip.frames[::-1].astype(np.float32) / 255)
    nearest = min(np.abs(np.roll(forward, turn, 0) - reverse).mean() for turn in range(len(clip)))
    return Clip(clip.frames[::-1], clip.fps) if nearest > LEAST_ASYMMETRY * amount(clip) else None


def shuffled(clip: Clip, *key: str) -> Clip | None:
    """Return the clip with its frames in an order that moves clearly more; None where twenty draws find none."""
    for attempt in range(20):
        order = np.random.default_rng(keyed_seed("shuffled", *key, attempt)).permutation(len(clip))
        found = Clip(clip.frames[order], clip.fps)
        if amount(found) > LEAST_RISE * amount(clip):
            return found
    return None


def choose_moved(table: list[Emoji]) -> list[Emoji]:
    """Return emoji with short names to be moved, a fair draw by hash, as many as `MOVED`."""
    fit = [emoji for emoji in table if emoji.group in MOVED_GROUPS and len(emoji.caption.split()) <= 2]
    return sorted(fit, key=lambda emoji: keyed_seed("moved", emoji.hexcode))[:MOVED]


def choose_animated(table: list[Emoji]) -> list[Emoji]:
    """Return emoji whose animation moves at this size, a fair draw by hash, as many as `ANIMATED`."""
    fit = [emoji for emoji in table if emoji.animation and amount(emoji.animation) >= LEAST_AMOUNT]
    return sorted(fit, key=lambda emoji: keyed_seed("animated", emoji.hexcode))[:ANIMATED]


def _files(tarballs: list[Path]) -> Iterator[tuple[str, bytes]]:
    for tarball in tarballs:
        with tarfile.open(tarball) as archive:
            for member in archive:
                code = Path(member.name).stem
                if member.name.endswith(".webp") and not any(tone in code for tone in SKIN_TONES):
                    yield code, archive.extractfile(member).read()


def _find(files: Mapping[str, bytes], hexcode: str) -> bytes | None:
    """The two projects disagree on when to write the variation selector FE0F."""
    code = hexcode.lower()
    return next((files[name] for name in (code, f"{code}-fe0f", code.replace("-fe0f", "")) if name in files), None)


def _animation(data: bytes) -> Clip | None:
    codec = VideoModality()
    if codec.sniff(data) is None:
        return None
    clip = codec.decode(data, lambda total, fps: uniform(total, FRAMES))
    frames = [np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX)) for frame in clip.frames]
    return Clip(np.stack(frames), clip.fps)


def _sprite(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        still = picture.convert("RGBA")
    return still.crop(still.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox())


def _placed(sprite: Image.Image, size: int, right: float, down: float) -> np.ndarray:
    """Return a white frame with the sprite, its longer side ``size`` pixels, off the middle by whole pixels."""
    scale = size / max(sprite.size)
    small = sprite.resize([max(1, round(side * scale)) for side in sprite.size], Image.Resampling.LANCZOS)
    frame = Image.new("RGBA", (SIDE, SIDE), "white")
    corner = [(SIDE - side) // 2 + round(offset) for side, offset in zip(small.size, (right, down))]
    frame.alpha_composite(small, tuple(corner))
    return np.asarray(frame.convert("RGB"))
