"""The hook page and the table of kinds say the same."""

from __future__ import annotations

import inspect

import pytest

from polyalign.plugins import hookspecs
from polyalign.plugins.specs import KINDS

HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("polyalign_")}


def test_there_is_one_hook_per_kind() -> None:
    assert set(HOOKS) == {f"polyalign_{kind}" for kind in KINDS}


@pytest.mark.parametrize("name", HOOKS)
def test_hook_takes_nothing_returns_its_kind_and_has_one_docstring_line(name: str) -> None:
    hook = HOOKS[name]
    assert not inspect.signature(hook).parameters
    assert KINDS[name.removeprefix("polyalign_")].__name__ in str(inspect.signature(hook).return_annotation)
    assert hook.__doc__ and len(hook.__doc__.splitlines()) == 1
