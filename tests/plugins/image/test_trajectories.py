"""Every way to save work gives the same run: 20 steps of DPO on a tiny LLaVA, through `polyalign train`, equal to 1e-5."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from polyalign.config import load_recipe
from polyalign.records.convert import moved
from polyalign.records.jsonl import write_jsonl
from polyalign.records.store import MediaStore
from polyalign.training import run
from polyalign_image import fixture

STEPS = 20
VARIANTS: dict[str, list[str]] = {
    "plain rows": ["policy.rows=plain"],
    "packed rows": ["policy.rows=packed"],
    "live reference": ["reference.cache=false"],
    "gradient checkpointing": ["training.gradient_checkpointing=true"],
    "one example at a time": ["training.micro_batch_size=1"],
    "head in small chunks": ["policy.head_chunk=7"],
    "features from disk": ["policy.cache_features=true"],
}
PROCESSES = {"two processes": [], "two shards": ["training.sharding=fully_shard"]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on disk: a model as transformers writes it, eight comparisons of two pictures' descriptions."""
    folder = tmp_path_factory.mktemp("trajectories")
    model, processor = fixture.tiny_llava()
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    records, media = fixture.records()
    pairs = [record for record in records if not record.tags]
    records = [record.model_copy(update={"id": f"{record.id}-{copy}"}) for copy in range(2) for record in pairs][:8]
    store = MediaStore(folder / "data")
    write_jsonl(folder / "data" / "train.jsonl", (moved(record, media, store) for record in records))
    written = {
        "name": "image/tiny",
        "policy": {
            "name": "vision-language", "base": str(folder / "base"), "max_length": 160, "max_response": 48,
            "language": "full", "projector": "frozen",
        },
        "data": {"train": [{"path": str(folder / "data")}]},
        "objective": {"name": "dpo"},
        "reference": {"cache": True},
        "training": {"steps": STEPS, "batch_size": 8, "optimizer": {"learning_rate": 2e-4}},
        "report": {"prompts": 0},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(written))
    return folder / "recipe.yaml"


def trajectory(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in ("loss", "margin", "grad_norm")} for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def expected(recipe: Path) -> list[dict[str, float]]:
    run.train(load_recipe(str(recipe), []), recipe.parent / "runs" / "shared")
    rows = trajectory(recipe.parent / "runs" / "shared")
    assert len(rows) == STEPS and rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert rows[-1]["loss"] < 0.67  # it learns, or twenty equal steps would prove nothing
    return rows


def assert_same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == STEPS
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["margin"] == pytest.approx(theirs["margin"], abs=1e-4)  # of sums near -400, in float32 steps of 3e-5
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_work_changes_no_step(recipe: Path, expected: list[dict[str, float]], name: str) -> None:
    out = recipe.parent / "runs" / name
    run.train(load_recipe(str(recipe), VARIANTS[name]), out)
    assert_same(trajectory(out), expected)


@pytest.mark.parametrize("name", PROCESSES)
def test_two_processes_take_the_same_steps(recipe: Path, expected: list[dict[str, float]], name: str) -> None:
    out = recipe.parent / "runs" / name
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", "polyalign"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*launch, "train", str(recipe), "--out", str(out), *PROCESSES[name]],
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(trajectory(out), expected)
