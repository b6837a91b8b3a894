"""Where the data sets of this distribution lie: inside an installed package, or beside its sources."""

from __future__ import annotations

from pathlib import Path


def cartpole_episodes() -> Path:
    """Return the folder of the ``cartpole-episodes`` data set."""
    return _folder("cartpole-episodes")


def manipulation() -> Path:
    """Return the folder of the ``manipulation`` data set."""
    return _folder("manipulation")


def reach_episodes() -> Path:
    """Return the folder of the ``reach-episodes`` data set."""
    return _folder("reach-episodes")


def _folder(name: str) -> Path:
    packaged = Path(__file__).parent / "data" / name
    return packaged if packaged.is_dir() else Path(__file__).parents[4] / "datasets" / name
