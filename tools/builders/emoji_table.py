"""The table of real emoji that the data set `emoji-styles` and the zoo models are built from.

One row is one emoji: its caption and tags, its place in the Unicode taxonomy, its split, and its picture in two drawing
styles. Three npm packages hold everything; they are fetched by `npm pack` and checked against pinned hashes.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = {  # npm package: (version, sha256 of the tarball)
    "emoji-datasource-google": ("16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    "emoji-datasource-twitter": ("16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
    "emojibase-data": ("17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
}
STYLES = {"noto": "google", "twemoji": "twitter"}  # the word used in captions: the folder in the npm package
SIZE = 64  # pixels, both styles

# Groups of letters, arrows, plain shapes and flags: at 64 pixels a small model cannot tell their members apart.
DROPPED_SUBGROUPS = frozenset(
    "skin-tone hair-style family arrow zodiac keycap alphanum av-symbol math punctuation geometric "
    "flag country-flag subdivision-flag gender transport-sign currency".split()
)
MAN, WOMAN = "1F468-200D", "1F469-200D"  # first characters of gendered compositions such as "woman astronaut"
CLOCK_FACES = ("o’clock", "-thirty")
LEAST_STYLE_DIFFERENCE = 0.06  # mean absolute difference of the two pictures, pixels in [0, 1]
HELD_OUT_SHARE = 0.12


@dataclass(frozen=True)
class Emoji:
    """One emoji in both styles; `pictures[style]` is uint8 `[64, 64, 3]` on white."""

    hexcode: str
    caption: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    split: str  # "train" or "test"; the zoo models see both, preferences only "train"
    pictures: dict[str, np.ndarray]


def fetch(cache: Path, packages: Mapping[str, tuple[str, str]] = PACKAGES) -> dict[str, Path]:
    """Return the path of each tarball, fetching what the cache lacks; raises ValueError on a wrong hash."""
    cache.mkdir(parents=True, exist_ok=True)
    tarballs = {}
    for name, (version, expected) in packages.items():
        path = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=cache, check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"{path} has sha256 {found}, expected {expected}; delete it and try again")
        tarballs[name] = path
    return tarballs


def load_table(cache: Path) -> list[Emoji]:
    """Return the chosen emoji in Unicode order. The rule is `_is_drawable` and a visible difference of style."""
    tarballs = fetch(cache)
    drawings = {style: _read_drawings(tarballs[f"emoji-datasource-{folder}"], folder) for style, folder in STYLES.items()}
    rows: list[tuple[dict, dict[str, np.ndarray]]] = []
    for entry, subgroup in read_entries(tarballs["emojibase-data"]):
        if not _is_drawable(entry, subgroup):
            continue
        pictures = {style: _find(drawings[style], entry["hexcode"]) for style in STYLES}
        if any(picture is None for picture in pictures.values()):
            continue
        noto, twemoji = (picture.astype(np.float32) / 255 for picture in pictures.values())
        if np.abs(noto - twemoji).mean() < LEAST_STYLE_DIFFERENCE:
            continue
        rows.append((entry | {"subgroup": subgroup}, pictures))
    held_out = held_out_codes([entry for entry, _ in rows])
    return [
        Emoji(
            hexcode=entry["hexcode"],
            caption=entry["label"].lower().replace("’", "'").replace("“", "").replace("”", ""),
            tags=tuple(tag.lower() for tag in entry.get("tags", ())),
            group=entry["group"],
            subgroup=entry["subgroup"],
            split="test" if entry["hexcode"] in held_out else "train",
            pictures=pictures,
        )
        for entry, pictures in rows
    ]


def _is_drawable(entry: dict, subgroup: str) -> bool:
    return (
        subgroup not in DROPPED_SUBGROUPS
        and "gender" not in entry
        and not entry["hexcode"].startswith((MAN, WOMAN))
        and ":" not in entry["label"]
        and not any(words in entry["label"] for words in CLOCK_FACES)
    )


def held_out_codes(entries: list[dict]) -> set[str]:
    """The same share of every subgroup, chosen by hash of the code point: rerunning or adding emoji moves few of them."""
    by_subgroup: dict[str, list[str]] = {}
    for entry in entries:
        by_subgroup.setdefault(entry["subgroup"], []).append(entry["hexcode"])
    held_out: set[str] = set()
    for codes in by_subgroup.values():
        codes.sort(key=lambda code: hashlib.sha256(code.encode()).hexdigest())
        held_out.update(codes[: round(len(codes) * HELD_OUT_SHARE)])
    return held_out


def read_entries(tarball: Path) -> Iterator[tuple[dict, str]]:
    """Yield the emoji of `emojibase-data` in Unicode order, each with its subgroup; entries name their group."""
    with tarfile.open(tarball) as archive:
        entries = json.load(archive.extractfile("package/en/data.json"))
        names = json.load(archive.extractfile("package/meta/groups.json"))
    for entry in sorted(entries, key=lambda entry: entry.get("order", -1)):
        if "group" in entry:
            yield entry | {"group": names["groups"][str(entry["group"])]}, names["subgroups"][str(entry["subgroup"])]


def _read_drawings(tarball: Path, folder: str) -> dict[str, np.ndarray]:
    drawings = {}
    prefix = f"package/img/{folder}/{SIZE}/"
    with tarfile.open(tarball) as archive:
        for member in archive:
            if member.name.startswith(prefix):
                with Image.open(io.BytesIO(archive.extractfile(member).read())) as image:
                    picture = image.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                white.alpha_composite(picture)
                drawings[Path(member.name).stem] = np.asarray(white.convert("RGB"))
    return drawings


def _find(drawings: dict[str, np.ndarray], hexcode: str) -> np.ndarray | None:
    """The two projects disagree on when to write the variation selector FE0F."""
    code = hexcode.lower()
    for name in (code, f"{code}-fe0f", code.replace("-fe0f", "")):
        if name in drawings and drawings[name].shape == (SIZE, SIZE, 3):
            return drawings[name]
    return None
