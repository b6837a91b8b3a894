"""Names that recipes use instead of paths: ``asset:smollm2``, ``zoo:tiny-sd``, ``dataset:emoji-styles``."""

from __future__ import annotations

import re
from pathlib import Path

from polyalign.assets.catalogue import find_asset
from polyalign.assets.install import is_installed
from polyalign.errors import PolyalignError, nearest

__all__ = ["resolve_dataset", "resolve_model"]

SCHEME = re.compile(r"([a-z][a-z0-9_-]+):(?![\\/])(.*)")  # two letters at least, so that a Windows drive is none; not a URL


def resolve_model(reference: str) -> str:
    """Return what ``from_pretrained`` takes: a folder for ``zoo:NAME`` and ``asset:NAME``, anything else unchanged.

    Raises `PolyalignError` for an unknown name or scheme, and for an asset that is not installed, with the command to run.
    """
    scheme, name = _split(reference, ("asset", "zoo"))
    if scheme == "asset":
        return str(asset_folder(name))
    if scheme == "zoo":
        return str(_shipped("models", name))
    return reference


def resolve_dataset(reference: str) -> Path:
    """Return the data set's folder or file: that of ``dataset:NAME``, or the path itself, which may not exist.

    Raises `PolyalignError` for an unknown name or scheme.
    """
    scheme, name = _split(reference, ("dataset",))
    return _shipped("datasets", name) if scheme else Path(reference).expanduser()


def asset_folder(name: str) -> Path:
    """Return the folder of an installed asset. Raises `PolyalignError` that says how to install it."""
    asset = find_asset(name)
    if not is_installed(asset):
        size = f"{asset.download_bytes / 1e6:.0f} MB"
        raise PolyalignError(f"asset {name!r} ({size}, {asset.licence}) is not installed. Run: polyalign assets install {name}")
    return asset.folder


def _split(reference: str, schemes: tuple[str, ...]) -> tuple[str, str]:
    found = SCHEME.fullmatch(reference)
    if found is None:
        return "", reference
    scheme, name = found.groups()
    if scheme not in schemes:
        known = ", ".join(f"{each}:NAME" for each in schemes)
        raise PolyalignError(
            f"{reference!r} begins with {scheme + ':'!r}, which names nothing here.{nearest(scheme, schemes)} "
            f"Expected {known}, or a path{' or a hub id' if 'zoo' in schemes else ''}."
        )
    return scheme, name


def _shipped(kind: str, name: str) -> Path:
    from polyalign.plugins.registry import registry

    folder = Path(registry().get(kind, name).load()())
    if not folder.exists():
        raise PolyalignError(
            f"{kind[:-1]} {name!r} should be in {folder}, which does not exist. Reinstall the package that ships it."
        )
    return folder
