"""Tiny trained models shipped as ordinary diffusers and open_clip folders; recipes name them `zoo:tiny-sd`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["names", "path"]

_MODELS = Path(__file__).parent / "models"


def names() -> list[str]:
    """Return the names of the models in this distribution, sorted."""
    return sorted(folder.name for folder in _MODELS.iterdir() if folder.is_dir())


def path(name: str) -> Path:
    """Return the folder of the model `name`, with or without the prefix `zoo:`; raises ValueError on an unknown name."""
    folder = _MODELS / name.removeprefix("zoo:")
    if folder.parent != _MODELS or not folder.is_dir():
        raise ValueError(f"The zoo has no model {name!r}; it has {', '.join(map(repr, names()))}")
    return folder
