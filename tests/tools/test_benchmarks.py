"""The comparisons with TRL run, agree with it, and say what a reader needs; each in its smallest shape, as a user runs them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from polyalign.policies.shared_prefix import PADDING, Line, block_mask, share_rows

NUMBERS = (
    "median seconds per step",
    "of which collating",
    "speed-up",
    "ceiling",
    "decoder tokens per step",
    "teraflop per step",
    "pictures through the tower per prompt",
)
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed; see requirements-dev.txt")


@pytest.fixture
def benchmarks(repository: Path) -> Path:
    return repository / "tools" / "benchmarks"


def run(script: Path, folder: Path, *options: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Run a comparison; return its contenders by (shape, mode), after checks that hold for all of them."""
    report = folder / "report.json"
    words = [sys.executable, str(script), "--steps", "1", "--json", str(report), *options]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["problems"] == [] and found["trl"] and found["torch"] and found["threads"] == 1
    for result in found["results"]:
        assert next(iter(result["contenders"])) == "TRL"
        for seen in result["contenders"].values():
            assert all(seen[number] >= 0 for number in NUMBERS)
            assert max(*seen["outcome differences"].values(), seen["gradient difference"]) <= 1e-4
    return {(result["shape"], result["mode"]): result["contenders"] for result in found["results"]}


def passes(contenders: dict[str, Any]) -> dict[str, float]:
    return {name: seen["pictures through the tower per prompt"] for name, seen in contenders.items()}


@needs_trl
@pytest.mark.slow
def test_pictures_are_encoded_once_per_step_where_trl_encodes_them_four_or_six_times(benchmarks: Path, tmp_path: Path) -> None:
    """TRL: chosen and rejected, in policy and reference; under gradient checkpointing the policy's two are computed again."""
    found = run(benchmarks / "vlm_dpo.py", tmp_path, "--shape", "tiny", "--no-memory")
    ours = {"plain rows": 1, "shared rows": 1, "shared, cached reference": 1, "shared, cached reference and features": 0}
    assert passes(found["tiny", "no checkpointing"]) == {"TRL": 4, **ours}
    assert passes(found["tiny", "gradient checkpointing"]) == {"TRL": 6, **ours}
    for contenders in found.values():
        tokens = {name: seen["decoder tokens per step"] for name, seen in contenders.items()}
        assert tokens["plain rows"] == tokens["TRL"] > tokens["shared rows"]
        assert abs(contenders["TRL"]["first and last loss"][0] - 0.6931) > 1e-3  # or agreement would say little


@needs_trl
@pytest.mark.slow
def test_text_dpo_agrees_with_trl_with_a_live_and_a_precomputed_reference(benchmarks: Path, tmp_path: Path) -> None:
    found = run(benchmarks / "text_dpo.py", tmp_path, "--shape", "tiny", "--mode", "no checkpointing", "--no-memory")
    assert list(found["tiny", "no checkpointing"]) == [
        "TRL",
        "TRL, precomputed reference",
        "plain rows",
        "shared rows",
        "packed rows",
        "shared, cached reference",
    ]


@needs_trl
@pytest.mark.slow
def test_rollouts_are_scored_as_trl_scores_them_and_memory_is_measured(benchmarks: Path, tmp_path: Path) -> None:
    found = run(benchmarks / "rollouts.py", tmp_path, "--shape", "tiny-picture", "--mode", "training")
    contenders = found["tiny-picture", "training"]
    assert passes(contenders) == {"TRL": 8, "plain rows": 1, "shared rows": 1, "auto rows": 1}
    for seen in contenders.values():
        assert set(seen["outcome differences"]) == {"loss", "log_probs", "entropy"}
        assert seen["peak bytes"] >= seen["model bytes"] > 0


def load(benchmarks: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(benchmarks)
    return importlib.import_module(name)


def test_a_difference_beyond_the_tolerance_is_named(benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = load(benchmarks, "agreement", monkeypatch)
    theirs = [{"loss": torch.tensor(0.5), "log_probs": torch.tensor([-4.0, -2.0])}]
    mine = [{"loss": torch.tensor(0.5), "log_probs": torch.tensor([-4.0, -2.004])}]
    seen = {
        "outcome differences": agreement.outcome_differences(mine, theirs),  # 0.004 of 4
        "gradient difference": agreement.gradient_difference({"w": torch.tensor([2.0, 0.1])}, {"w": torch.tensor([2.0, 0.3])}),
        "pictures through the tower per prompt": 2.0,
        "pictures allowed": 1,
    }
    found = agreement.problems({"shape": "tiny", "mode": "training", "contenders": {"shared rows": seen}})
    assert found == [
        "tiny, training, shared rows: log_probs differs from TRL's by 1.0e-03, more than 0.0001",
        "tiny, training, shared rows: gradient differs from TRL's by 1.0e-01, more than 0.0001",
        "tiny, training, shared rows: a picture went through the tower 2 times per step, expected 1",
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_the_ceiling_counts_the_cells_that_the_mask_shows(
    benchmarks: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    flop_ceiling = load(benchmarks, "flop_ceiling", monkeypatch)
    lines = [Line(7, length, (), "prompt" if shared else number) for number, length in enumerate((4, 1, 6))]
    rows = share_rows(lines)
    real = rows["owner"] != PADDING
    cells = int(block_mask(rows)[:, 0][real].sum())
    assert flop_ceiling.attended(7, (4, 1, 6), shared) == cells


def test_the_flop_count_is_the_formula_in_its_docstring(benchmarks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer of width 128: 3 * 128^2 + 3 * 128 * 352 = 184,320 weights. Forward: 2 * 184,320 * 10 tokens + 4 * 128 * 30
    cells + 2 * 128 * 2,048 * 5 scored. One picture of 16 patches in one layer of width 64, twice: 2 * (2 * 12 * 64^2 * 16 +
    4 * 64 * 16^2)."""
    flop_ceiling = load(benchmarks, "flop_ceiling", monkeypatch)
    shape = flop_ceiling.Shape((), (), hidden=128, layers=1, picture=56, tower_hidden=64, tower_layers=1)
    work = flop_ceiling.Work(tokens=10, cells=30, scored=5, tower_passes=2)
    expected = 3_686_400 + 15_360 + 2_621_440 + 2 * (1_572_864 + 65_536)
    assert flop_ceiling.flops(shape, work, flop_ceiling.FORWARD) == expected
    assert flop_ceiling.Passes.training(checkpointing=True, reference=True) == flop_ceiling.Passes(4, 5, 3)


def test_shared_rows_agree_with_plain_ones_and_state_their_ceiling(benchmarks: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = [sys.executable, str(benchmarks / "shared_rows.py"), "--shape", "tiny", "--steps", "1", "--json", str(report)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads(report.read_text())["results"]
    assert set(results) == {"tiny lora", "tiny full"}
    for found in results.values():
        assert found["difference"] <= 1e-4 and 2 < found["ceiling"] < 4
        assert found["speed-up"]["shared"] > 0
