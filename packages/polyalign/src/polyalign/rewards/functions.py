"""A user's own function as a reward: ``file.py:function``, no plugin needed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from polyalign.errors import RewardError, nearest
from polyalign.rewards.base import Judged, Reward, asked
from polyalign.rewards.config import FunctionConfig

SIGNATURES = "def NAME(prompt, output) for one response at a time, or def NAME(items) for a batch"


class FunctionReward(Reward):
    """What the function returns.

    ``f(prompt, output)`` gets the text of the last user message and the decoded response, and returns one number.
    ``f(items)`` gets all `Judged` items and returns one number each. Further parameters are filled from ``options``.
    The file is run as a module of its own; it may import what lies beside it.
    """

    def __init__(self, name: str, config: FunctionConfig | None = None) -> None:
        self.name = name
        self.options = dict((config or FunctionConfig()).options)
        self.function = user_function(name)
        self.batched = _is_batched(self.function, self.options, name)

    def score(self, items: Sequence[Judged]) -> list[float]:
        if not self.batched:
            return [
                self._number(self.function(asked(item.prompt), item.output, **self.options), at) for at, item in enumerate(items)
            ]
        values = self.function(list(items), **self.options)
        if not hasattr(values, "__len__") or len(values) != len(items):
            found = f"{len(values)} values" if hasattr(values, "__len__") else repr(values)
            raise RewardError(f"{self.name!r} was given {len(items)} items and returned {found}; expected one number each")
        return [self._number(value, at) for at, value in enumerate(values)]

    def _number(self, value: Any, position: int) -> float:
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise RewardError(f"{self.name!r} returned {value!r} for item {position}; expected a number") from error


def user_function(name: str) -> Callable[..., Any]:
    """Return the function that ``file.py:function`` names. Raises `RewardError` for a file or function that is not there."""
    path, _, function = name.rpartition(":")
    return _function(_module(Path(path).resolve(), name), function, name)


def _module(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise RewardError(f"{name!r}: there is no file {str(path)!r}; the path is relative to the recipe or to where you are")
    key = f"polyalign_user_{path.stem}_{crc32(bytes(path)):08x}"
    spec = spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickle look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RewardError(f"{name!r}: running {path.name} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _function(module: ModuleType, function: str, name: str) -> Callable[..., Any]:
    found = getattr(module, function, None)
    if found is None or not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RewardError(
            f"{name!r}: the file has no function {function!r}.{nearest(function, own)} It has: {', '.join(own) or 'none'}."
        )
    call: Callable[..., Any] = found
    return call


def _is_batched(function: Callable[..., Any], options: dict[str, Any], name: str) -> bool:
    """Return whether it is ``f(items)``. Raises `RewardError` for a signature that is neither form."""
    parameters = inspect.signature(function).parameters
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [
        key for key, p in parameters.items() if p.kind in kinds and p.default is inspect.Parameter.empty and key not in options
    ]
    batched = required == ["items"]
    try:
        if not batched and len(required) != 2:
            raise TypeError(f"it takes {', '.join(required) or 'nothing'}")
        inspect.signature(function).bind(*([None] if batched else [None, None]), **options)
    except TypeError as error:
        raise RewardError(f"reward {name!r}: {error}; expected {SIGNATURES.replace('NAME', function.__name__)}") from error
    return batched
