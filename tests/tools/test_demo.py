"""The demo, cut to a step a run: it draws, judges and lays out its sheet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.slow
def test_the_demo_runs_to_its_sheet(repository: Path, asset: Callable[[str], Path], tmp_path: Path) -> None:
    asset("efficientnet-lite0")
    out = tmp_path / "demo"
    command = [sys.executable, str(repository / "tools" / "demo.py"), "--max-steps", "1", "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(json.loads((out / "summary.json").read_text())) == {"dpo", "instruct-engine"}
    with Image.open(out / "before-after.png") as sheet:
        assert len(set(sheet.convert("L").resize((64, 64)).tobytes())) > 20  # pictures, and not a blank page
