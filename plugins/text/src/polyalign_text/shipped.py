"""Where the data sets of this distribution lie: inside an installed package, or beside its sources."""

from __future__ import annotations

from pathlib import Path


def text_constraints() -> Path:
    """Return the folder of the ``text-constraints`` data set."""
    packaged = Path(__file__).parent / "data" / "text-constraints"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[4] / "datasets" / "text-constraints"
