"""Preference alignment for generative models of any modality."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyalign.config import load_recipe
    from polyalign.launch import train
    from polyalign.plugins.registry import registry

__all__ = ["__version__", "load_recipe", "registry", "train"]
__version__ = "0.1.0"

_LAZY = {"train": "polyalign.launch", "load_recipe": "polyalign.config", "registry": "polyalign.plugins.registry"}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import polyalign`` costs nothing."""
    if name not in _LAZY:
        raise AttributeError(f"module 'polyalign' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
