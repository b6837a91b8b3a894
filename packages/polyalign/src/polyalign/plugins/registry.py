"""Looks up what plugins offer, by kind and name."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

from polyalign.errors import PluginError, nearest
from polyalign.plugins.loader import Discovery, PluginFailure, discover_installed
from polyalign.plugins.specs import KINDS, Spec, function_spec, is_function

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One spec, the distribution that ships it, and the entry name of the plugin in it."""

    spec: Spec
    distribution: str
    plugin: str


class Registry:
    """Everything the loaded plugins offer. Names are unique per kind."""

    def __init__(self, discovery: Discovery) -> None:
        self.plugins = discovery.plugins
        self.failures: tuple[PluginFailure, ...] = discovery.failures
        self.blocked = discovery.blocked
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        for plugin in discovery.plugins:
            for kind, specs in plugin.specs.items():
                self._entries[kind].update({spec.name: Entry(spec, plugin.distribution, plugin.name) for spec in specs})

    def entries(self, kind: str) -> list[Entry]:
        """Return the entries of one kind (a key of `KINDS`), sorted by name."""
        if kind not in self._entries:
            raise PluginError(f"unknown kind {kind!r}.{nearest(kind, KINDS)} Kinds are: {', '.join(KINDS)}")
        return [entry for _, entry in sorted(self._entries[kind].items())]

    def get(self, kind: str, name: str) -> Spec:
        """Return the spec; ``file.py:function`` among the rewards is a user's own function.

        Raises `PluginError` with the nearest name, all names, and the plugins that failed.
        """
        if is_function(kind, name):
            return function_spec(name)
        for entry in self.entries(kind):
            if entry.spec.name == name:
                return entry.spec
        raise PluginError(f"no {kind} named {name!r}.{self.hint(kind, name)}")

    def hint(self, kind: str, name: str) -> str:
        """Return what helps somebody who asked for a name that is not there; starts with a space."""
        names = [entry.spec.name for entry in self.entries(kind)]
        text = f"{nearest(name, names)} Installed {kind}: {', '.join(names) or 'none'}."
        if self.failures:
            text += f" Plugins left out: {', '.join(failure.entry for failure in self.failures)} (see: polyalign plugins)."
        if self.blocked:
            text += f" Blocked plugins: {', '.join(self.blocked)}."
        return text


@lru_cache(maxsize=1)
def registry() -> Registry:
    """Return the registry of the installed plugins, built once per process. Logs one warning line per plugin left out."""
    built = Registry(discover_installed())
    for failure in built.failures:
        log.warning("%s", failure.line())
    return built
