"""Looking up names: the answer to a wrong one tells the way out."""

from __future__ import annotations

import logging

import pytest

from polyalign.errors import PluginError
from polyalign.plugins import loader
from polyalign.plugins.loader import discover
from polyalign.plugins.registry import Registry, registry
from polyalign.plugins.specs import KINDS, RewardSpec, plural, singular


@pytest.fixture
def fresh_registry(monkeypatch):
    monkeypatch.delenv("POLYALIGN_STRICT_PLUGINS", raising=False)
    monkeypatch.delenv("POLYALIGN_BLOCK_PLUGINS", raising=False)
    registry.cache_clear()
    yield
    registry.cache_clear()


@pytest.fixture
def known(site) -> Registry:
    site.add_good("a-plugin", "a", "clip_score")
    site.add_good("b-plugin", "b", "aesthetic")
    site.add("broken-plugin", "broken", "import not_here")
    return Registry(discover(site.entries(), blocked=["blocked"]))


def test_get_returns_the_spec_and_entries_name_the_owner(known: Registry) -> None:
    assert known.get("rewards", "clip_score") == RewardSpec(name="clip_score", summary="a reward", target="json:loads")
    entries = [(entry.spec.name, entry.distribution, entry.plugin) for entry in known.entries("rewards")]
    assert entries == [("aesthetic", "b-plugin", "b"), ("clip_score", "a-plugin", "a")]


def test_unknown_name_gives_nearest_list_and_failed_plugins(known: Registry) -> None:
    with pytest.raises(PluginError) as caught:
        known.get("rewards", "clip_scroe")
    text = str(caught.value)
    assert "no rewards named 'clip_scroe'. Did you mean 'clip_score'?" in text
    assert "Installed rewards: aesthetic, clip_score." in text
    assert "Plugins left out: broken" in text


def test_unknown_kind_gives_nearest_and_list(known: Registry) -> None:
    with pytest.raises(PluginError, match=r"unknown kind 'reward'. Did you mean 'rewards'"):
        known.entries("reward")


def test_every_kind_has_a_singular_that_leads_back() -> None:
    assert singular("policies") == "policy" and singular("modalities") == "modality" and singular("rewards") == "reward"
    assert all(plural(singular(kind)) == kind and plural(kind) == kind for kind in KINDS)


def test_registry_logs_one_warning_per_failure_and_is_built_once(site, monkeypatch, caplog, fresh_registry) -> None:
    site.add("broken-plugin", "broken", "import not_here")
    entries = site.entries()
    monkeypatch.setattr(loader, "entry_points", lambda group: entries)
    with caplog.at_level(logging.WARNING):
        assert registry() is registry()
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("polyalign")]
    assert line == "plugin 'broken' of 'broken-plugin' is left out: ModuleNotFoundError: No module named 'not_here'"


def test_environment_blocks_and_makes_strict(site, monkeypatch, fresh_registry) -> None:
    site.add("broken-plugin", "broken", "import not_here")
    entries = site.entries()
    monkeypatch.setattr(loader, "entry_points", lambda group: entries)
    monkeypatch.setenv("POLYALIGN_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="broken-plugin"):
        registry()
    monkeypatch.setenv("POLYALIGN_BLOCK_PLUGINS", "other, broken")
    assert registry().blocked == ("broken",)


def test_core_plugin_offers_the_objectives_of_this_distribution(fresh_registry) -> None:
    names = {entry.spec.name for entry in registry().entries("objectives") if entry.distribution == "polyalign"}
    assert {"sft", "dpo", "kto", "simpo", "orpo", "instruct_engine"} <= names
