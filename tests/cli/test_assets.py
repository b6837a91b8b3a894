"""``polyalign assets``: what is offered, what is there, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyalign.assets.catalogue import ASSETS
from polyalign.cli.assets import app
from polyalign.errors import PolyalignError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path))
    return tmp_path


def pretend_installed(name: str) -> Path:
    asset = ASSETS[name]
    asset.folder.mkdir(parents=True)
    (asset.folder / "asset.json").write_text(json.dumps({"sha256": asset.sha256, "conversion": asset.conversion}))
    return asset.folder


def test_list_shows_size_licence_and_state() -> None:
    pretend_installed("minilm")
    done = CliRunner().invoke(app, ["list", "--json"])
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {name for name, row in rows.items() if row["installed"]} == {"minilm"}
    assert rows["whisper-tiny.en"]["licence"] == "MIT" and rows["smollm2"]["download_mb"] == 93

    table = CliRunner().invoke(app, ["list"])
    assert table.exit_code == 0 and all(name in table.stdout for name in ASSETS)


def test_path_prints_the_folder_of_an_installed_asset() -> None:
    folder = pretend_installed("smollm2")
    assert CliRunner().invoke(app, ["path", "smollm2"]).stdout.replace("\n", "") == str(folder)


def test_path_of_a_missing_asset_says_how_to_install_it() -> None:
    done = CliRunner().invoke(app, ["path", "smollm2"])
    assert isinstance(done.exception, PolyalignError) and "polyalign assets install smollm2" in str(done.exception)


def test_a_misspelt_name_stops_before_the_first_download(cache: Path) -> None:
    done = CliRunner().invoke(app, ["install", "smollm2", "minilmm"])
    assert isinstance(done.exception, PolyalignError) and "Did you mean 'minilm'" in str(done.exception)
    assert list(cache.iterdir()) == []
