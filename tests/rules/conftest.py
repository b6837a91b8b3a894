"""What the rules look at: the members of the workspace, their modules, and the files that a commit would hold."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Member:
    """One distribution of the workspace."""

    folder: Path

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def project(self) -> dict[str, Any]:
        return self.pyproject["project"]

    @cached_property
    def package(self) -> Path:
        (package,) = [path.parent for path in (self.folder / "src").glob("*/__init__.py")]
        return package

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Dotted name -> file, for every module of the member."""
        found = {}
        for path in sorted(self.package.rglob("*.py")):
            parts = path.relative_to(self.package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found


MEMBERS = [Member(path.parent) for group in ("packages", "plugins") for path in sorted((ROOT / group).glob("*/pyproject.toml"))]
CORE = next(member for member in MEMBERS if member.name == "polyalign")


def imported(path: Path, at_load: bool = False) -> set[str]:
    """Return the dotted names a file imports; ``at_load``: only those that importing it runs, not the ones inside functions
    or under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if at_load and (checking or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def committed() -> list[Path]:
    """Return the files that a commit of the working tree would hold."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
