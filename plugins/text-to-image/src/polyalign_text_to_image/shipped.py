"""Where the data of this distribution lie."""

from __future__ import annotations

from pathlib import Path


def two_coloured() -> Path:
    """Return the folder of the ``two-coloured`` prompts."""
    return Path(__file__).parent / "data" / "two-coloured"
