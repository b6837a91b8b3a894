"""`polyalign plugins check`: an author learns what does not work before users do."""

from __future__ import annotations

import pytest

from polyalign.errors import PluginError
from polyalign.plugins.check import check_plugin
from polyalign.plugins.loader import Discovery, Plugin, discover
from polyalign.plugins.registry import Registry

SOURCE = """
@hookimpl
def polyalign_rewards():
    return [
        RewardSpec(name="good", summary="works", target="json:loads"),
        RewardSpec(name="no_module", summary="x", target="not_here.at_all:Thing"),
        RewardSpec(name="no_attribute", summary="x", target="json:Thing"),
        RewardSpec(name="not_callable", summary="x", target="json:__name__"),
        RewardSpec(name="bad_config", summary="x", target="json:loads", config="json:JSONDecoder"),
        RewardSpec(name="no_package", summary="x", target="json:loads", requires=("not_here_either",)),
        RewardSpec(name="no_summary", summary=" ", target="json:loads"),
    ]
"""


def test_check_names_each_thing_that_does_not_load(site) -> None:
    site.add("check-plugin", "check", SOURCE)
    report = check_plugin("check", Registry(discover(site.entries())))
    problems = {line.split("'")[1]: line for line in report.problems}
    assert "there is no module 'not_here'" in problems["no_module"]
    assert "'json' has no 'Thing'" in problems["no_attribute"]
    assert "expected a class or a function" in problems["not_callable"]
    assert "not a subclass of polyalign.training.config.Config" in problems["bad_config"]
    assert "pip install not_here_either" in problems["no_package"]
    assert "has no summary" in problems["no_summary"]
    assert set(problems) == {"no_module", "no_attribute", "not_callable", "bad_config", "no_package", "no_summary"}
    assert report.passed == ["rewards 'good'", "listing it imports nothing heavy"]


def test_check_finds_a_plugin_that_imports_torch_when_listed(site) -> None:
    """The check runs in a fresh interpreter; an empty stand-in for torch keeps the test quick."""
    site.add("heavy-plugin", "heavy", "import torch\n")
    (site.folder / "torch.py").write_text("")
    report = check_plugin("heavy", Registry(Discovery((Plugin("heavy", "heavy-plugin", "1.0", {}),))))
    assert report.problems == ["listing it imports torch; move such imports behind the lazy targets"]


def test_check_of_a_failed_plugin_reports_the_failure(site) -> None:
    site.add("broken-plugin", "broken", "import not_here")
    report = check_plugin("broken", Registry(discover(site.entries())))
    assert report.problems and "not_here" in report.problems[0]


def test_check_of_an_unknown_plugin_gives_the_nearest(site) -> None:
    site.add_good("a-plugin", "flavour", "taste")
    with pytest.raises(PluginError, match=r"no plugin named 'flavor'. Did you mean 'flavour'"):
        check_plugin("flavor", Registry(discover(site.entries())))
