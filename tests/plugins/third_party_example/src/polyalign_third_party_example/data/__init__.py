"""The data set ``walks``: see `make.py` for how it was made."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Return the folder of the data set."""
    return Path(__file__).parent
