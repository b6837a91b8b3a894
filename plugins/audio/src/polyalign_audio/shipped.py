"""Where the data sets of this distribution lie: inside an installed package, or beside its sources."""

from __future__ import annotations

from pathlib import Path


def heard_tunes() -> Path:
    """Return the folder of the ``heard-tunes``."""
    return _packaged("heard-tunes")


def spoken_emoji() -> Path:
    """Return the folder of the ``spoken-emoji`` data set."""
    return _packaged("spoken-emoji")


def tune_prompts() -> Path:
    """Return the folder of the ``tune-prompts``."""
    return Path(__file__).parent / "data" / "tune-prompts"


def _packaged(name: str) -> Path:
    inside = Path(__file__).parent / "data" / name
    return inside if inside.is_dir() else Path(__file__).parents[4] / "datasets" / name
