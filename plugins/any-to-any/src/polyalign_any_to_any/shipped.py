"""Where the data sets of this distribution lie: inside an installed package, or beside its sources."""

from __future__ import annotations

from pathlib import Path


def emoji_any() -> Path:
    """Return the folder of the ``emoji-any`` data set."""
    packaged = Path(__file__).parent / "data" / "emoji-any"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[4] / "datasets" / "emoji-any"
