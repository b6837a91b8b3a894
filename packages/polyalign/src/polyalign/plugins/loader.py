"""Finds and loads plugins. A broken plugin costs itself one line and nobody else anything.

pluggy's own loader stops at the first broken plugin and silently drops the second distribution that claims an entry name,
so this one walks the entry points itself.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

import polyalign
from polyalign.errors import PluginError, nearest
from polyalign.plugins import hookspecs
from polyalign.plugins.specs import KINDS, Spec

GROUP = hookspecs.PROJECT
CORE = re.compile(rf"{GROUP}(?![\w.-])", re.IGNORECASE)  # a requirement of it, and not of polyalign-image
BLOCK_VARIABLE = "POLYALIGN_BLOCK_PLUGINS"
STRICT_VARIABLE = "POLYALIGN_STRICT_PLUGINS"


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: who ships it, and what it offers by kind."""

    name: str
    distribution: str
    version: str
    specs: dict[str, tuple[Spec, ...]]


@dataclass(frozen=True)
class PluginFailure:
    """A plugin that was left out: ``why`` is one line, ``traceback`` is empty where there is nothing to trace."""

    distribution: str
    entry: str
    why: str
    traceback: str = ""

    def line(self) -> str:
        return f"plugin {self.entry!r} of {self.distribution!r} is left out: {self.why}"


@dataclass(frozen=True)
class Discovery:
    """What one walk over the entry points found."""

    plugins: tuple[Plugin, ...] = ()
    failures: tuple[PluginFailure, ...] = ()
    blocked: tuple[str, ...] = ()


@dataclass
class _Walk:
    manager: pluggy.PluginManager
    owners: dict[str, str] = field(default_factory=dict)  # entry name -> distribution
    taken: dict[tuple[str, str], str] = field(default_factory=dict)  # (kind, spec name) -> distribution


def discover(entries: Iterable[EntryPoint] | None = None, blocked: Sequence[str] = (), strict: bool = False) -> Discovery:
    """Load every plugin in a stable order: core first, then by (entry name, distribution).

    ``entries`` default to the installed entry points of group "polyalign". ``strict`` raises the first failure as
    `PluginError` instead of keeping it.
    """
    walk = _Walk(pluggy.PluginManager(hookspecs.PROJECT))
    walk.manager.add_hookspecs(hookspecs)
    plugins, failures, skipped = [], [], []
    for entry in sorted(entry_points(group=GROUP) if entries is None else entries, key=_order):
        if entry.name in blocked:
            skipped.append(entry.name)
            continue
        try:
            plugins.append(_load(entry, walk))
        except (Exception, SystemExit) as error:  # a plugin may raise anything; it may not take the others with it
            if walk.manager.has_plugin(_key(entry)):
                walk.manager.unregister(name=_key(entry))
            expected = isinstance(error, PluginError)
            why = str(error) if expected else f"{type(error).__name__}: {error}"
            trace = "" if expected and not error.__cause__ else traceback.format_exc()
            failure = PluginFailure(_owner(entry), entry.name, " ".join(why.split()), trace)
            if strict:
                raise PluginError(failure.line()) from error
            failures.append(failure)
    return Discovery(tuple(plugins), tuple(failures), tuple(skipped))


def discover_installed() -> Discovery:
    """Load the installed plugins as the environment asks: names to block, and whether to be strict."""
    blocked = [name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",") if name.strip()]
    return discover(blocked=blocked, strict=os.environ.get(STRICT_VARIABLE, "") not in ("", "0"))


def _load(entry: EntryPoint, walk: _Walk) -> Plugin:
    owner = _owner(entry)
    if entry.name in walk.owners:
        first = walk.owners[entry.name]
        raise PluginError(f"the entry name {entry.name!r} already belongs to {first!r}; rename it in {owner!r} or uninstall one")
    walk.owners[entry.name] = owner
    _check_core_range(entry)
    module = entry.load()
    walk.manager.register(module, name=_key(entry))
    unknown = _pending(walk.manager)
    if unknown:
        close = nearest(unknown[0], [f"polyalign_{kind}" for kind in KINDS])
        this = f"This is polyalign {polyalign.__version__}; was the plugin made for a newer one?"
        raise PluginError(f"unknown hook {unknown[0]!r}.{close} {this}")
    specs = {kind: _collect(walk.manager, module, kind) for kind in KINDS}
    names = [(kind, spec.name) for kind, found in specs.items() for spec in found]
    for position, (kind, name) in enumerate(names):
        holder = owner if (kind, name) in names[:position] else walk.taken.get((kind, name))
        if holder is not None:
            raise PluginError(f"{kind} {name!r} of {owner!r} is already provided by {holder!r}; rename or uninstall one")
    walk.taken.update(dict.fromkeys(names, owner))
    return Plugin(entry.name, owner, entry.dist.version if entry.dist else "", {k: v for k, v in specs.items() if v})


def _pending(manager: pluggy.PluginManager) -> list[str]:
    """Return the hook names that have an implementation but no specification."""
    try:
        manager.check_pending()
    except pluggy.PluginValidationError:
        hooks = vars(manager.hook).values()
        callers = [hook for hook in hooks if isinstance(hook, pluggy.HookCaller) and not hook.has_spec()]
        return [caller.name for caller in callers if any(not impl.optionalhook for impl in caller.get_hookimpls())]
    return []


def _collect(manager: pluggy.PluginManager, module: Any, kind: str) -> tuple[Spec, ...]:
    hook = f"polyalign_{kind}"
    specs: list[Spec] = []
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is module:
            specs.extend(implementation.function())
    for spec in specs:
        if not isinstance(spec, KINDS[kind]):
            raise PluginError(f"hook {hook!r} returned {spec!r}; expected {KINDS[kind].__name__} objects")
    return tuple(specs)


def _check_core_range(entry: EntryPoint) -> None:
    """pip can leave a set that does not fit together; the plugin's declared range is checked here."""
    requirements = (entry.dist.requires if entry.dist else None) or ()
    ours = [text for text in requirements if CORE.match(text) and text != f"{GROUP}=={polyalign.__version__}"]
    if not ours:
        return  # the parser below costs as much to import as the rest of this module
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    for text in ours:
        need = Requirement(text)
        applies = canonicalize_name(need.name) == GROUP and (need.marker is None or need.marker.evaluate())
        if applies and not need.specifier.contains(polyalign.__version__, prereleases=True):
            raise PluginError(f"it needs polyalign{need.specifier}, but polyalign {polyalign.__version__} is installed")


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _key(entry: EntryPoint) -> str:
    return f"{_owner(entry)}:{entry.name}"


def _order(entry: EntryPoint) -> tuple[bool, str, str]:
    return (_owner(entry) != GROUP, entry.name, _owner(entry))
