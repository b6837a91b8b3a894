"""A plugin from outside the tree, installed by pip and trained through the command line, beside six broken neighbours."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from toys.distributions import RAISING, UNKNOWN_HOOK, Site

from polyalign.cells import cells
from polyalign.cli.main import main
from polyalign.plugins.registry import registry

SOURCE = Path(__file__).parent / "third_party_example"
CELLS_TEST = Path(__file__).parents[1] / "cells" / "test_cells.py"
CLI = [sys.executable, "-c", "import sys; from polyalign.cli.main import main; sys.exit(main())"]
BROKEN = ("cannot-import", "wrong-range", "name-clash", "raising-hook", "unknown-hook", "same-entry")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the example into; the environment that runs the tests is left as it is."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(SOURCE)], check=True)
    return target


@pytest.fixture(scope="session")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six broken plugins, each broken in its own way."""
    site = Site(tmp_path_factory.mktemp("broken"))
    site.add("cannot-import", "cannot_import", "import a_package_that_is_not_here")
    site.add_good("wrong-range", "wrong_range", "out_of_range", requires="polyalign>=7")
    site.add_good("name-clash", "zz_clash", "follows_prompt")
    site.add("raising-hook", "raising", RAISING)
    site.add("unknown-hook", "unknown", UNKNOWN_HOOK)
    site.add_good("same-entry", "walks", "never_seen")
    return site.folder


@pytest.fixture
def plugged(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process sees the installed example, and forgets it afterwards."""
    monkeypatch.syspath_prepend(str(installed))
    registry.cache_clear()
    yield
    registry.cache_clear()
    for name in [name for name in sys.modules if name.startswith("polyalign_third_party_example")]:
        del sys.modules[name]


@dataclass(frozen=True)
class Finished:
    folder: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def run(installed: Path, neighbours: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One training through the command line, in its own process, with the broken plugins installed too."""
    folder = tmp_path_factory.mktemp("run")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(installed), str(neighbours)]),
        "POLYALIGN_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("POLYALIGN_STRICT_PLUGINS", None)
    done = subprocess.run(
        [*CLI, "train", "walks/exponential", "training.steps=20", "--out", str(folder / "out")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Finished(folder / "out", done.stdout, done.stderr)


def test_third_party_policy_objective_and_reward_train_end_to_end(run: Finished) -> None:
    """The loss starts at 1, the exponential objective's value at the reference, and the reward that training never saw rises."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(1.0, abs=1e-5)
    assert losses[-1] < 0.8
    assert (run.folder / "model" / "model.safetensors").is_file()
    assert (run.folder / "report.html").is_file()
    (judgement,) = json.loads((run.folder / "judgements.json").read_text())
    assert judgement["name"] == "follows_prompt"
    assert str(run.folder) in run.stdout


def test_each_broken_neighbour_costs_exactly_one_line_and_nobody_else_anything(run: Finished) -> None:
    lines = [line for line in run.stderr.splitlines() if "is left out" in line]
    for name in BROKEN:
        assert sum(f"of {name!r} is left out" in line for line in lines) == 1, name
    assert len(lines) == len(BROKEN)
    clash = next(line for line in lines if "'name-clash' is left out" in line)
    assert "'follows_prompt' of 'name-clash' is already provided by 'polyalign-third-party-example'" in clash
    same = next(line for line in lines if "'same-entry' is left out" in line)
    assert "already belongs to 'polyalign-third-party-example'" in same


def test_run_folder_holds_the_resolved_recipe_with_the_third_partys_defaults(run: Finished, plugged: None) -> None:
    text = (run.folder / "config.yaml").read_text()
    assert "hidden: 16" in text and "name: exponential" in text and "view: pairs" in text
    assert main(["config", "show", str(run.folder)]) == 0


def test_its_names_are_listed_with_their_owner(plugged: None, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"modality": "walk", "policies": "walker", "rewards": "follows_prompt", "recipes": "walks/exponential"}
    for kind, name in names.items():
        assert main(["list", kind, "--json"]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows[name]["distribution"] == "polyalign-third-party-example"
    assert main(["plugins", "check", "walks"]) == 0, capsys.readouterr().out


def test_its_policy_gets_cells_through_the_same_road(plugged: None, tmp_path: Path) -> None:
    """The matrix names a test for each of its cells, and that test passes; ORPO says why it cannot."""
    mine = {cell.objective: cell for cell in cells() if cell.policy == "walker"}
    assert not mine["orpo"].supported and "density" in mine["orpo"].reason
    trained = ("sft", "dpo", "kto", "simpo", "instruct_engine", "exponential")
    assert all(mine[name].supported for name in trained)
    shared = _module(CELLS_TEST)
    for name in trained:
        assert mine[name].test == f"tests/cells/test_cells.py::test_cell[walker-{name}]"
        (tmp_path / name).mkdir()
        shared.test_cell(mine[name], tmp_path / name)


def test_its_objective_can_train_our_policies(plugged: None) -> None:
    mine = {cell.policy: cell for cell in cells() if cell.objective == "exponential"}
    assert mine["text"].supported and mine["walker"].supported


def test_trained_run_can_be_scored_sampled_and_judged(
    run: Finished, plugged: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(run.folder), "--out", str(tmp_path / "scores.jsonl")]) == 0
    assert "4 preferences" in capsys.readouterr().out
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 4
    assert main(["sample", str(run.folder), "--prompt", "walk up", "-n", "2", "--out", str(tmp_path / "samples")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["eval", str(run.folder), "--out", str(tmp_path / "judged")]) == 0
    assert "follows_prompt" in capsys.readouterr().out


def test_a_finished_run_is_not_written_over(run: Finished, plugged: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "walks/exponential", "--out", str(run.folder)]) == 2
    assert "already holds a run; go on with --resume" in capsys.readouterr().err


def test_shipped_records_are_what_their_script_writes(plugged: None, tmp_path: Path) -> None:
    from polyalign_third_party_example.data.make import make

    make(tmp_path)
    shipped = SOURCE / "src" / "polyalign_third_party_example" / "data"
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_text() == (shipped / name).read_text()


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_cells_test", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
