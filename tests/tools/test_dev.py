"""tools/dev.py: set up once, run from anywhere, say what to do when it cannot."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def dev(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("polyalign_dev_tool", repository / "tools" / "dev.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of two members, a virtual environment that looks made, and no command that really runs."""
    for member in ("plugins/alpha", "packages/polyalign"):
        (tmp_path / member).mkdir(parents=True)
        (tmp_path / member / "pyproject.toml").write_text(f"# {member}")
    for name, path in {"VENV": ".venv", "PYTHON": ".venv/bin/python", "STAMP": ".venv/stamp"}.items():
        monkeypatch.setattr(dev, name, tmp_path / path)
    for name in ("REQUIREMENTS", "CONSTRAINTS"):
        monkeypatch.setattr(dev, name, tmp_path / f"{name.lower()}.txt")
        (tmp_path / f"{name.lower()}.txt").write_text("")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("")
    return tmp_path


@pytest.fixture
def commands(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every command the tool would run, as words."""
    seen: list[list[str]] = []

    def run(*words: object, env: dict[str, str] | None = None) -> int:
        seen.append([str(word) for word in words])
        return 0

    monkeypatch.setattr(dev, "run", run)
    monkeypatch.setattr(dev, "has_pip", lambda python: True)
    return seen


def test_members_are_installed_editable_by_absolute_path_core_first(
    dev: ModuleType, tree: Path, commands: list[list[str]]
) -> None:
    dev.install()
    libraries, members = commands
    assert libraries[-2:] == ["--requirement", str(tree / "requirements.txt")]
    assert members[-4:] == ["--editable", str(tree / "packages/polyalign"), "--editable", str(tree / "plugins/alpha")]


def test_a_second_install_runs_nothing_until_a_member_or_requirement_changes(
    dev: ModuleType, tree: Path, commands: list[list[str]]
) -> None:
    dev.install()
    dev.install()
    assert len(commands) == 2

    (tree / "plugins/alpha/pyproject.toml").write_text("# a new dependency")
    dev.install()
    assert len(commands) == 4

    (tree / "constraints.txt").write_text("six==1.17.0")
    dev.install()
    assert len(commands) == 6


def test_a_failed_install_is_tried_again(
    dev: ModuleType, tree: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "run", lambda *words, env=None: 1)
    with pytest.raises(dev.Stop, match="installing the libraries failed with exit status 1"):
        dev.install()
    assert not dev.STAMP.exists()


def test_fast_tests_leave_the_slow_ones_out_and_slow_ones_get_their_assets(
    dev: ModuleType, tree: Path, commands: list[list[str]]
) -> None:
    dev.test(False, ["-k", "rules"])
    (fast,) = commands
    assert fast[fast.index("-m", 2) + 1 :] == ["not slow and not gpu", "-k", "rules"]

    commands.clear()
    dev.test(True, [])
    assets, slow = commands
    assert assets[1:3] == ["assets", "install"] and "smollm2" in assets
    assert "not slow and not gpu" not in slow


def test_python_without_ensurepip_and_pip_is_told_which_packages_to_install(
    dev: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "has_pip", lambda python: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(dev.Stop, match="apt-get install python3-venv"):
        dev.install()


def test_an_unknown_script_is_answered_with_the_known_ones(dev: ModuleType, tree: Path) -> None:
    builders = tree / "tools" / "builders"
    builders.mkdir(parents=True)
    (builders / "train_tiny_sd.py").write_text("if __name__ == '__main__': ...")
    (builders / "emoji_styles.py").write_text("if __name__ == '__main__': ...")
    (builders / "emoji_table.py").write_text("TABLE = {}  # imported by the others")
    with pytest.raises(dev.Stop, match=r"no zoo 'tiny-clip'.*Known: tiny-sd\."):
        dev.main(["zoo", "tiny-clip"])
    with pytest.raises(dev.Stop, match=r"no data 'emoji'.*Known: emoji-styles\."):
        dev.main(["data", "emoji"])


def test_the_core_count_is_a_container_quota_where_there_is_one(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self: "200000 100000" if self.name == "cpu.max" else read(self))
    assert dev.cores() == 2
    monkeypatch.setattr(Path, "read_text", lambda self: "max 100000" if self.name == "cpu.max" else read(self))
    assert dev.cores() == 64


def test_it_runs_from_any_folder(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "tools" / "dev.py"), "zoo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[dev] zoo: ") and "tiny-sd" in done.stdout
