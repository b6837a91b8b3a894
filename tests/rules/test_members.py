"""Every member of the workspace is packaged the same way; tool settings live in the root alone."""

from __future__ import annotations

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from .conftest import CORE, MEMBERS, Member

each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
TOOLS = {"ruff", "mypy", "pytest", "coverage", "black", "isort"}


def test_the_workspace_has_members_besides_the_core() -> None:
    assert {"polyalign", "polyalign-zoo", "text", "image", "text-to-image"} <= {member.name for member in MEMBERS}


@each_member
def test_members_share_version_python_and_licence(member: Member) -> None:
    for key in ("version", "requires-python", "license"):
        assert member.project[key] == CORE.project[key], f"{member.name}: {key} differs from the core's"


@each_member
def test_a_member_is_named_after_its_folder(member: Member) -> None:
    expected = member.name if member.folder.parent.name == "packages" else f"polyalign-{member.name}"
    assert member.project["name"] == expected
    assert member.package.name == expected.replace("-", "_")


@each_member
def test_members_are_built_by_hatchling_and_typed(member: Member) -> None:
    assert member.pyproject["build-system"]["build-backend"] == "hatchling.build"
    assert (member.package / "py.typed").exists()
    assert (member.folder / member.project["readme"]).read_text(encoding="utf-8").strip()


@each_member
def test_no_member_has_tool_settings_of_its_own(member: Member) -> None:
    assert not TOOLS & set(member.pyproject.get("tool", {}))


@each_member
def test_every_other_member_needs_exactly_this_core(member: Member) -> None:
    needs = {need.name: need.specifier for need in map(Requirement, member.project["dependencies"])}
    ours = {name for name in needs if name.startswith("polyalign")}
    if member is CORE:
        assert not ours
    else:
        assert ours == {"polyalign"}, f"{member.name} may need the core and no other member, but needs {sorted(ours)}"
        assert needs["polyalign"] == SpecifierSet(f"=={CORE.project['version']}")


@each_member
def test_a_member_announces_one_plugin_and_it_is_installed(member: Member) -> None:
    if not (member.package / "plugin.py").exists() and member is not CORE:
        pytest.skip(f"{member.name} offers no plugin")
    declared = member.project["entry-points"]["polyalign"]
    assert len(declared) == 1
    (name, value) = next(iter(declared.items()))
    (entry,) = entry_points(group="polyalign", name=name)
    assert entry.value == value and entry.dist is not None and entry.dist.name == member.project["name"]
    entry.load()


def test_the_root_has_settings_and_nothing_to_install(repository: Path) -> None:
    root = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    assert not {"project", "build-system"} & set(root)
    assert root["tool"]["uv"]["workspace"]["members"] == ["packages/*", "plugins/*"]


def test_every_requirement_of_a_member_is_in_the_tested_set(repository: Path) -> None:
    """A library that only pip's mood chooses is not tested; each one is pinned in constraints.txt, within the member's range."""
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        need.name.lower().replace("_", "-"): need
        for need in map(Requirement, (line for line in lines if line and line[0] != "#"))
    }
    for member in MEMBERS:
        for need in map(Requirement, member.project["dependencies"]):
            name = need.name.lower().replace("_", "-")
            if not name.startswith("polyalign"):
                assert name in pins, f"{member.name} needs {name}, which constraints.txt does not pin"
                (pin,) = pins[name].specifier
                assert need.specifier.contains(pin.version), f"{member.name} needs {need}, but {pin.version} is what is tested"


def test_ci_runs_the_test_command_that_the_readme_names(repository: Path) -> None:
    for page in (repository / ".ci" / "run", repository / "README.md"):
        assert "python3 tools/dev.py test" in page.read_text(encoding="utf-8"), page.name
