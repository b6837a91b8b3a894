"""Where the data sets of this distribution lie: inside an installed package, or beside its sources."""

from __future__ import annotations

from pathlib import Path


def emoji_captions() -> Path:
    """Return the folder of the ``emoji-captions`` data set."""
    packaged = Path(__file__).parent / "data" / "emoji-captions"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[4] / "datasets" / "emoji-captions"
