"""Who may import whom, and what has to stay light."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from .conftest import CORE, MEMBERS, Member, imported

each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
HEAVY = ("accelerate", "diffusers", "open_clip", "peft", "timm", "torch", "transformers")

# Lower layers first: importing a module of one part may run modules of the same or an earlier line only.
LAYERS = (
    {"errors", "randomness", "cache"},
    {"plugins"},
    {"records", "assets"},
    {"training.config", "slots"},
    {"policies", "rewards", "objectives", "encoders"},
    {"evaluation"},
    {
        "config",
        "cells",
        "recipe_help",
        "recipe_text",
        "training",
        "launch",
        "evaluation.run",
        "evaluation.self_samples",
        "synthesis",
    },
    {"cli"},
)


def part_of(module: str) -> str:
    """Return the core's part a dotted name belongs to: ``polyalign.records.schema`` -> ``records``."""
    names = module.split(".")[1:]
    own = ".".join(names[:2])
    return own if any(own in parts for parts in LAYERS) else names[0]


def layer_of(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("module", [name for name in CORE.modules if name != "polyalign"])
def test_a_core_module_loads_only_its_own_layer_and_lower_ones(module: str) -> None:
    for other in imported(CORE.modules[module], at_load=True):
        if other.startswith("polyalign."):
            assert layer_of(part_of(other)) <= layer_of(part_of(module)), f"{module} imports {other}, which is above it"


@each_member
def test_a_member_imports_the_core_and_itself_and_no_other_member(member: Member) -> None:
    own = {"polyalign", member.package.name}
    for module, path in member.modules.items():
        others = {name.split(".")[0] for name in imported(path)} - own
        assert not {name for name in others if name.startswith("polyalign")}, f"{module} imports another member"


@each_member
def test_plugins_leave_the_command_line_alone(member: Member) -> None:
    if member is CORE:
        pytest.skip("the command line is the core's")
    for module, path in member.modules.items():
        assert not {name for name in imported(path) if name.startswith("polyalign.cli")}, module


def test_light_modules_load_nothing_heavy() -> None:
    """One process imports them all in turn and names the first that brings a heavy library in."""
    light = [
        module
        for member in MEMBERS
        for module in member.modules
        if module.rsplit(".", 1)[-1] in ("plugin", "config")
        or module == member.package.name
        or (member is CORE and module.split(".")[-2:-1] == ["polyalign"] and part_of(module) != "encoders")
        or (member is CORE and part_of(module) in ("records", "cli", "plugins", "assets"))
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    if heavy:\n"
        "        sys.exit(f'importing {name} loads {heavy}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert len(light) > 20


@pytest.mark.parametrize("module", [module for member in MEMBERS for module in member.modules])
def test_every_module_can_be_imported(module: str) -> None:
    importlib.import_module(module)
