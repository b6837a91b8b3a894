"""A broken plugin costs itself one line, and nobody else anything."""

from __future__ import annotations

import pytest
from toys.distributions import RAISING, UNKNOWN_HOOK

from polyalign.errors import PluginError
from polyalign.plugins.loader import discover

WRONG_ARGUMENT = """

@hookimpl
def polyalign_rewards(registry):
    return []
"""
HALF = """

@hookimpl
def polyalign_rewards():
    return [RewardSpec(name="kept", summary="", target="a:b")]

@hookimpl
def polyalign_policies():
    raise RuntimeError("no policies today")
"""
WRONG_TYPE = """

@hookimpl
def polyalign_rewards():
    return ["clip_score"]
"""
TWICE = """

@hookimpl
def polyalign_rewards():
    return [RewardSpec(name="same", summary="", target="a:b")] * 2
"""

BROKEN = {
    "import error": (
        "import a_package_that_is_not_here\n",
        {},
        "ModuleNotFoundError: No module named 'a_package_that_is_not_here'",
    ),
    "syntax error": ("def broken(:\n", {}, "SyntaxError"),
    "exit on import": ("import sys\nsys.exit(3)\n", {}, "SystemExit: 3"),
    "wrong core range": ("", {"requires": "polyalign>=9"}, "it needs polyalign>=9, but polyalign 0.1.0 is installed"),
    "raising hook": (RAISING, {}, "RuntimeError: the reward shop is closed"),
    "unknown hook": (UNKNOWN_HOOK, {}, "unknown hook 'polyalign_reward'. Did you mean 'polyalign_rewards'?"),
    "wrong argument": (WRONG_ARGUMENT, {}, "registry"),
    "hook of wrong type": (WRONG_TYPE, {}, "hook 'polyalign_rewards' returned 'clip_score'; expected RewardSpec objects"),
    "one hook of two raises": (HALF, {}, "RuntimeError: no policies today"),
    "own name twice": (TWICE, {}, "rewards 'same' of 'broken-plugin' is already provided by 'broken-plugin'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_is_left_out_with_one_line_and_its_neighbours_work(site, case) -> None:
    source, options, reason = BROKEN[case]
    site.add_good("a-plugin", "a", "first")
    site.add("broken-plugin", "broken", source, **options)
    site.add_good("z-plugin", "z", "last")
    found = discover(site.entries())
    assert [plugin.name for plugin in found.plugins] == ["a", "z"]
    assert [spec.name for plugin in found.plugins for spec in plugin.specs["rewards"]] == ["first", "last"]
    (failure,) = found.failures
    assert (failure.distribution, failure.entry) == ("broken-plugin", "broken")
    assert reason in failure.why
    assert "\n" not in failure.line()
    assert "'broken'" in failure.line() and "'broken-plugin'" in failure.line()


def test_unexpected_failure_keeps_its_traceback_for_the_author(site) -> None:
    site.add("broken-plugin", "broken", RAISING)
    assert "in polyalign_rewards" in discover(site.entries()).failures[0].traceback


def test_second_owner_of_an_entry_name_is_refused_and_both_are_named(site) -> None:
    """Without this, which of the two is loaded depends on the order of directories on disk."""
    site.add_good("b-plugin", "same", "from_b")
    site.add_good("a-plugin", "same", "from_a")
    found = discover(site.entries())
    assert [plugin.distribution for plugin in found.plugins] == ["a-plugin"]
    (failure,) = found.failures
    assert failure.distribution == "b-plugin"
    assert "'a-plugin'" in failure.why and "'b-plugin'" in failure.why


def test_name_clash_costs_the_later_plugin_and_names_both_owners(site) -> None:
    site.add_good("a-plugin", "a", "taste")
    site.add_good("b-plugin", "b", "taste")
    found = discover(site.entries())
    assert [plugin.name for plugin in found.plugins] == ["a"]
    assert found.failures[0].why == "rewards 'taste' of 'b-plugin' is already provided by 'a-plugin'; rename or uninstall one"


def test_a_failed_plugin_does_not_hold_its_names(site) -> None:
    site.add("a-plugin", "a", HALF)
    site.add_good("b-plugin", "b", "kept")
    assert [plugin.name for plugin in discover(site.entries()).plugins] == ["b"]


def test_core_comes_first_so_that_no_plugin_can_take_its_names(site) -> None:
    site.add_good("aaa-plugin", "aaa", "taste")
    site.add_good("polyalign", "zzz", "taste")
    found = discover(site.entries())
    assert [plugin.distribution for plugin in found.plugins] == ["polyalign"]
    assert found.failures[0].distribution == "aaa-plugin"


def test_order_is_by_entry_name_whatever_the_order_of_installation(site) -> None:
    for letter in "cab":
        site.add_good(f"{letter}-plugin", letter, f"reward_{letter}")
    entries = site.entries()
    names = [[plugin.name for plugin in discover(order).plugins] for order in (entries, entries[::-1])]
    assert names == [["a", "b", "c"]] * 2


def test_blocked_plugin_is_not_even_imported(site) -> None:
    site.add("broken-plugin", "broken", "raise RuntimeError('imported')\n")
    site.add_good("good-plugin", "good", "taste")
    found = discover(site.entries(), blocked=["broken"])
    assert found.failures == () and found.blocked == ("broken",)
    assert [plugin.name for plugin in found.plugins] == ["good"]


def test_strict_raises_the_failure_with_its_cause(site) -> None:
    site.add("broken-plugin", "broken", RAISING)
    with pytest.raises(PluginError, match="plugin 'broken' of 'broken-plugin' is left out") as caught:
        discover(site.entries(), strict=True)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_requirement_for_another_environment_is_not_checked(site) -> None:
    """An optional extra's range, or another Python's, says nothing about this installation."""
    site.add_good("a-plugin", "a", "taste", requires="polyalign>=9; python_version < '3'")
    site.add_good("b-plugin", "b", "touch", requires="polyalign>=9; extra == 'future'")
    assert discover(site.entries()).failures == ()


def test_a_plugin_without_hooks_offers_nothing_and_is_no_failure(site) -> None:
    site.add("empty-plugin", "empty", "")
    found = discover(site.entries())
    assert [plugin.specs for plugin in found.plugins] == [{}] and found.failures == ()
