"""Toy trainings in processes of their own, by name: see `worker`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]


def run_jobs(folder: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run named jobs in one helper process (one import of torch) and return their results."""
    plan = []
    for name, job in jobs.items():
        settings = {"folder": str(folder / job.pop("in", name)), "result": str(folder / f"{name}.json"), **job}
        plan.append(settings)
    (folder / "plan.json").write_text(json.dumps(plan))
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(TESTS / "toys" / "worker.py"), str(folder / "plan.json")],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in jobs if (folder / f"{name}.json").exists()}


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
