"""Where polyalign keeps what it can make again: assets, latents, embeddings, reference scores."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``POLYALIGN_CACHE`` if it is set, else ``~/.cache/polyalign``. The folder may not exist yet."""
    chosen = os.environ.get("POLYALIGN_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "polyalign"
