"""Where the data sets of this distribution lie: inside an installed package, or beside its sources."""

from __future__ import annotations

from pathlib import Path


def moving_emoji() -> Path:
    """Return the folder of the ``moving-emoji`` data set."""
    packaged = Path(__file__).parent / "data" / "moving-emoji"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[4] / "datasets" / "moving-emoji"


def move_prompts() -> Path:
    """Return the folder of the ``move-prompts``."""
    return Path(__file__).parent / "data" / "move-prompts"
