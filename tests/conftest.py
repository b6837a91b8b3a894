"""What every test may rely on: no network, no user settings, and assets only where they are installed."""

from __future__ import annotations

import os

# Before transformers is imported anywhere: a test that would reach for a model hub fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """``asset("smollm2")`` is the installed asset's folder; without it the test is skipped with the command that installs it."""
    from polyalign.assets import asset_folder
    from polyalign.errors import PolyalignError

    def folder(name: str) -> Path:
        try:
            return asset_folder(name)
        except PolyalignError as missing:
            pytest.skip(str(missing))

    return folder
