"""``asset:``, ``zoo:`` and ``dataset:`` names, and what is none of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from polyalign.assets import resolve_dataset, resolve_model
from polyalign.assets.catalogue import ASSETS, Asset
from polyalign.assets.install import install_asset
from polyalign.errors import PolyalignError
from polyalign.plugins import registry as registry_module
from polyalign.plugins.loader import Discovery, Plugin
from polyalign.plugins.registry import Registry
from polyalign.plugins.specs import DatasetSpec, ModelSpec


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin whose model and data set are both in ``tempfile.gettempdir()``, here a folder of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = ModelSpec(name="tiny", summary="", target="tempfile:gettempdir")
    data = DatasetSpec(name="few", summary="", target="tempfile:gettempdir")
    plugin = Plugin("toy", "toy-plugin", "1", {"models": (model,), "datasets": (data,)})
    monkeypatch.setattr(registry_module, "registry", lambda: Registry(Discovery((plugin,))))
    return tmp_path


@pytest.mark.parametrize("reference", ["./model", "/models/sd:v2", "owner/name", "gpt2", "C:\\models\\tiny", "https://host/x"])
def test_paths_and_hub_ids_are_left_alone(reference: str) -> None:
    assert resolve_model(reference) == reference
    assert resolve_dataset(reference) == Path(reference)


def test_a_zoo_name_is_the_folder_its_plugin_ships(shipped: Path) -> None:
    assert resolve_model("zoo:tiny") == str(shipped)
    with pytest.raises(PolyalignError, match="'tiney'.*Did you mean 'tiny'"):
        resolve_model("zoo:tiney")


def test_a_dataset_name_is_the_folder_its_plugin_ships(shipped: Path) -> None:
    assert resolve_dataset("dataset:few") == shipped
    with pytest.raises(PolyalignError, match="'fw'.*Did you mean 'few'"):
        resolve_dataset("dataset:fw")


def test_a_shipped_folder_that_is_gone_is_named(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(shipped / "gone"))
    with pytest.raises(PolyalignError, match="model 'tiny' should be in .*gone.*Reinstall"):
        resolve_model("zoo:tiny")


def test_an_asset_that_is_not_installed_is_answered_with_the_command(cache: Path) -> None:
    with pytest.raises(PolyalignError, match="93 MB, Apache-2.0.*Run: polyalign assets install smollm2"):
        resolve_model("asset:smollm2")


def test_an_installed_asset_is_its_managed_folder(toy: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "toy", toy)
    folder = install_asset(toy)
    assert resolve_model("asset:toy") == str(folder)


@pytest.mark.parametrize(
    ("reference", "nearest"), [("aset:smollm2", "Did you mean 'asset'"), ("dataset:few", "Expected asset:NAME")]
)
def test_a_misspelt_scheme_is_not_taken_for_a_path(reference: str, nearest: str) -> None:
    with pytest.raises(PolyalignError, match=nearest):
        resolve_model(reference)
