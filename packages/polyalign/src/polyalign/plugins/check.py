"""Tries everything a plugin says it offers, for authors who have no test suite yet."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from polyalign.errors import PluginError, PolyalignError, nearest
from polyalign.plugins.loader import Plugin
from polyalign.plugins.registry import Registry, registry
from polyalign.plugins.specs import PolicySpec, RecipeSpec, Spec, load_attribute

HEAVY = ("torch", "transformers", "diffusers")


@dataclass
class Report:
    """What works and what does not, one line each."""

    passed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_plugin(name: str, known: Registry | None = None) -> Report:
    """Load every target, configuration and fixture of the plugin, read its recipes, and see that listing it stays light."""
    known = known or registry()
    for failure in known.failures:
        if failure.entry == name:
            return Report(problems=[failure.line()])
    plugin = next((plugin for plugin in known.plugins if plugin.name == name), None)
    if plugin is None:
        names = [plugin.name for plugin in known.plugins]
        raise PluginError(f"no plugin named {name!r}.{nearest(name, names)} Installed: {', '.join(names)}.")
    report = Report()
    for kind, specs in plugin.specs.items():
        for spec in specs:
            _check(kind, spec, known, report)
    _check_light(plugin, report)
    return report


def _check(kind: str, spec: Spec, known: Registry, report: Report) -> None:
    try:
        missing = [package for package in spec.requires if importlib.util.find_spec(package) is None]
        if missing:
            raise PluginError(f"needs {', '.join(missing)}, which is not installed: pip install {' '.join(missing)}")
        if not spec.summary.strip():
            raise PluginError("has no summary")
        if isinstance(spec, RecipeSpec):
            from polyalign.config import load_recipe

            load_recipe(spec.name, known=known)
        else:
            _check_target(spec)
    except PolyalignError as error:
        report.problems.append(f"{kind} {spec.name!r}: {error}")
    except Exception as error:  # whatever an author's module raises on import is the finding
        report.problems.append(f"{kind} {spec.name!r}: {type(error).__name__}: {error}")
    else:
        report.passed.append(f"{kind} {spec.name!r}")


def _check_target(spec: Spec) -> None:
    from polyalign.training.config import Config

    target: Any = spec.load()
    if not callable(target):
        raise PluginError(f"target {spec.target!r} is {target!r}; expected a class or a function")
    config = spec.load_config()
    if config is not None and not (isinstance(config, type) and issubclass(config, Config)):
        raise PluginError(f"config {spec.config!r} is not a subclass of polyalign.training.config.Config")
    if isinstance(spec, PolicySpec) and spec.fixture:
        load_attribute(spec.fixture, spec.name)


def _check_light(plugin: Plugin, report: Report) -> None:
    """Import the plugin's module and configuration classes in a fresh interpreter, and look for heavy packages."""
    configs = sorted({spec.config for specs in plugin.specs.values() for spec in specs if spec.config})
    code = (
        "import importlib, sys\n"
        "from importlib.metadata import entry_points\n"
        f"[entry.load() for entry in entry_points(group='polyalign', name={plugin.name!r})]\n"
        f"[importlib.import_module(path.partition(':')[0]) for path in {configs!r}]\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # what this process can import
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        report.problems.append(f"importing its configuration fails: {result.stderr.strip().splitlines()[-1]}")
    elif result.stdout.strip():
        report.problems.append(
            f"listing it imports {', '.join(result.stdout.split())}; move such imports behind the lazy targets"
        )
    else:
        report.passed.append("listing it imports nothing heavy")
