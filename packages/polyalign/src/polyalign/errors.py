"""One family of errors for everything a user can mend. The command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolyalignError(Exception):
    """A mistake the user can mend: the message says what was found, what was expected, where, and the way out."""


class RecordError(PolyalignError):
    """A data record, or a file of records, is not valid."""


class MediaError(PolyalignError):
    """A medium is missing, unreadable, too large, or outside its data set."""


class ConfigError(PolyalignError):
    """A recipe is not valid. Collects every problem of one file."""


class PluginError(PolyalignError):
    """A plugin, or a name that a plugin should provide, is missing or broken."""


class RewardError(PolyalignError):
    """A reward cannot judge what it was given, or gave no usable number."""


class TrainingError(PolyalignError):
    """A run cannot start or cannot go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
