"""Where the data sets of this distribution lie: inside an installed package, or beside its sources."""

from __future__ import annotations

from pathlib import Path


def spoken_emoji() -> Path:
    """Return the folder of the ``spoken-emoji`` data set."""
    packaged = Path(__file__).parent / "data" / "spoken-emoji"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[4] / "datasets" / "spoken-emoji"


def tune_prompts() -> Path:
    """Return the folder of the ``tune-prompts``."""
    return Path(__file__).parent / "data" / "tune-prompts"
