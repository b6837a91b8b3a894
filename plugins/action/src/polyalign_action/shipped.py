"""Where the data sets of this distribution lie: inside an installed package, or beside its sources."""

from __future__ import annotations

from pathlib import Path


def cartpole_episodes() -> Path:
    """Return the folder of the ``cartpole-episodes`` data set."""
    packaged = Path(__file__).parent / "data" / "cartpole-episodes"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[4] / "datasets" / "cartpole-episodes"
