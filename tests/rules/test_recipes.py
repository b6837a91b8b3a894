"""Every shipped recipe is valid and would start; every spec a plugin announces can be loaded."""

from __future__ import annotations

import pytest

from polyalign.config import load_recipe
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import KINDS

RECIPES = [entry.spec.name for entry in registry().entries("recipes")]
SPECS = [
    (kind, entry.spec.name)
    for kind in KINDS
    if kind not in ("recipes", "models", "datasets")
    for entry in registry().entries(kind)
]
# What a recipe's first lines tell the user to make before, and what stands in for it here.
MADE_BEFORE = {"image/aligngpt-pretrain": ['data.train=[{path: "dataset:emoji-captions", split: noisy.train}]']}


def test_no_plugin_was_left_out() -> None:
    assert not registry().failures


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_dry_runs(name: str) -> None:
    from polyalign.training.run import dry_run

    resolved = load_recipe(name, MADE_BEFORE.get(name, []))
    text = dry_run(resolved)
    assert f"name: {resolved.recipe.name}" in text and "training examples" in text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_after_its_plugin(name: str) -> None:
    owner = {entry.spec.name: entry.plugin for entry in registry().entries("recipes")}[name]
    assert name.startswith(f"{owner}/")


@pytest.mark.parametrize(("kind", "name"), SPECS)
def test_what_a_spec_points_at_exists(kind: str, name: str) -> None:
    spec = registry().get(kind, name)
    assert callable(spec.load())
    if spec.config is not None:
        assert spec.load_config().model_config["extra"] == "forbid"


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_shipped_folders_exist_and_have_a_licence(kind: str) -> None:
    for entry in registry().entries(kind):
        spec = entry.spec
        assert spec.load()().is_dir(), spec.name
        assert spec.licence, spec.name
