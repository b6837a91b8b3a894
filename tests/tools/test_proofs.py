"""Every proof still runs, in its smallest shape; those that were run in full hold what they claim."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROOFS = sorted(path for path in (ROOT / "tools" / "proofs").glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("script", PROOFS, ids=lambda path: path.stem)
def test_a_proof_runs(script: Path) -> None:
    numbers = ROOT / "docs" / "proofs" / f"{script.stem.replace('_', '-')}.json"
    written = numbers.read_bytes() if numbers.exists() else None
    command = [sys.executable, str(script), "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (numbers.read_bytes() if numbers.exists() else None) == written, "a smoke run wrote its numbers"


@pytest.mark.parametrize("numbers", sorted((ROOT / "docs" / "proofs").glob("*.json")), ids=lambda path: path.stem)
def test_what_was_run_in_full_holds_what_it_claims(numbers: Path) -> None:
    found = json.loads(numbers.read_text())
    assert numbers.stem.replace("-", "_") in {script.stem for script in PROOFS}, "there is no such proof any more"
    assert found["proof"] == numbers.stem and found["holds"] is True and found["claim"]
    assert found["seconds"] <= 600
    assert len(found["source"]) == 64
