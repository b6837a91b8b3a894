"""Each plugin as a user gets it: its wheel, the core's, what the two declare, and nothing else of this environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "packages" / "polyalign"
MEMBERS = [CORE, *(path.parent for path in sorted(ROOT.glob("p*/*/pyproject.toml")) if path.parent != CORE)]
PLUGINS = [member for member in MEMBERS[1:] if list(member.glob("src/*/plugin.py"))]
each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
each_plugin = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory):
    """``wheels(member)`` is the member's wheel, built once."""
    folder = tmp_path_factory.mktemp("wheels")

    @cache
    def built(member: Path) -> Path:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(member)], check=True)
        (wheel,) = folder.glob(f"{name_of(member).replace('-', '_')}-*.whl")
        return wheel

    return built


def name_of(member: Path) -> str:
    return str(project(member)["name"])


@each_member
def test_a_wheel_holds_every_file_of_its_package_and_what_it_is_told_to_include(wheels, member: Path) -> None:
    held = set(zipfile.ZipFile(wheels(member)).namelist())
    source = member / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    asked = "\n".join(str(source / file) for file in files)
    command = ["git", "check-ignore", "--stdin"]
    ignored = subprocess.run(command, input=asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    wanted = files - {Path(path).relative_to(source).as_posix() for path in ignored}
    assert wanted <= held, sorted(wanted - held)[:5]
    assert any(name.endswith("/py.typed") for name in held)
    settings = tomllib.loads((member / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path, place in settings.get("force-include", {}).items():
        assert any(name == place or name.startswith(f"{place}/") for name in held), f"{path} is not in the wheel"
    assert any(name.endswith("entry_points.txt") for name in held) or member not in PLUGINS


def project(member: Path) -> dict[str, Any]:
    return dict(tomllib.loads((member / "pyproject.toml").read_text())["project"])


def declared(member: Path) -> list[str]:
    """Return what the member declares, extras included. Read from its sources: an editable install remembers older ones."""
    return [*project(member)["dependencies"], *chain(*project(member).get("optional-dependencies", {}).values())]


def needed(*names: str) -> dict[str, Distribution]:
    """Return the installed distributions that these need, directly or not, by name; polyalign's own are not among them."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(name) for name in names]
    seen: set[str] = set()
    while waiting:
        need = waiting.pop()
        if str(need) in seen:
            continue
        seen.add(str(need))
        if canonicalize_name(need.name).startswith("polyalign"):
            continue
        try:
            found[canonicalize_name(need.name)] = dist = distribution(need.name)
        except PackageNotFoundError:
            continue  # an optional part that nobody installed here
        for text in dist.requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in (*need.extras, "")):
                waiting.append(inner)
    return found


def companions_of(member: Path) -> list[Path]:
    """Return the plugins that this one declares, as a dependency or in an extra: media and judges that it knows by name."""
    named = {Requirement(text).name for text in declared(member)}
    return [other for other in PLUGINS if name_of(other) in named]


def environment_of(member: Path, wheels, folder: Path) -> dict[str, str]:
    """Install its wheel, the core's and its companions' into ``folder/site``, and beside them links to what they declare, extras
    included: the rest of this environment, other plugins and their dependencies above all, cannot be imported."""
    site, links = folder / "site", folder / "links"
    installed = [CORE, member, *companions_of(member)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-compile", "--target", str(site), *(str(wheels(one)) for one in installed)], check=True)
    links.mkdir()
    for dist in needed(*chain(*map(declared, installed))).values():
        for top in {Path(file).parts[0] for file in dist.files or () if Path(file).parts[0] not in ("..", "__pycache__")}:
            if not (links / top).exists() and Path(str(dist.locate_file(top))).exists():
                (links / top).symlink_to(str(dist.locate_file(top)))
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "POLYALIGN", "COV"))},
        "PYTHONPATH": os.pathsep.join([str(site), str(links)]),
        "POLYALIGN_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def entry_of(plugin: Path) -> str:
    (entry,) = project(plugin)["entry-points"]["polyalign"]
    return str(entry)


@each_plugin
def test_a_plugin_works_alone(wheels, plugin: Path, tmp_path: Path) -> None:
    """Everything it offers can be loaded, its recipes are read, its data are there, and each policy scores its fixture."""
    entry = entry_of(plugin)
    environment = environment_of(plugin, wheels, tmp_path)
    command = [sys.executable, "-S", str(Path(__file__).with_name("alone.py")), entry]  # -S: no editable installs
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["plugins"]) == {"core", entry, *map(entry_of, companions_of(plugin))} and not found["failures"]
    assert all(found["targets"].values()) and all(found["folders"].values()) and all(found["scored"].values())
    assert all(name == inside for name, inside in found["recipes"].items())
    assert found["cells"] > 0 or not found["scored"]


def test_another_plugin_and_its_dependencies_are_out_of_reach(wheels, tmp_path: Path) -> None:
    """What the test above rests on: beside the text plugin there are no pictures, no environments, and no editable core."""
    environment = environment_of(ROOT / "plugins" / "text", wheels, tmp_path)
    code = (
        "import importlib.util as u, polyalign\n"
        "print(polyalign.__file__)\n"
        "print([name for name in ('polyalign_image', 'gymnasium', 'diffusers', 'pytest') if u.find_spec(name)])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True)
    file, reachable = done.stdout.splitlines()
    assert Path(file).is_relative_to(tmp_path) and reachable == "[]"
