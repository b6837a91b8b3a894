"""The commands, run in this process: what they print, and with which exit code they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from toys.distributions import Site

import polyalign
from polyalign import launch
from polyalign.cli.main import main
from polyalign.errors import PolyalignError
from polyalign.plugins.registry import registry

COMMANDS = "train teach sample score eval synthesize merge recipes config data assets list cells plugins schema doctor".split()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run a command line; return (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def broken_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = Site(tmp_path)
    site.add("sad-plugin", "sad", "raise RuntimeError('so sad')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("POLYALIGN_STRICT_PLUGINS", raising=False)
    registry.cache_clear()
    yield
    registry.cache_clear()


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Record the calls of the training loop instead of training."""
    from polyalign.training import run as training_run

    calls: list[tuple] = []

    def train(resolved, out: Path, resume: bool = False, max_steps: int | None = None):
        calls.append((resolved, out, resume, max_steps))
        return SimpleNamespace(folder=out)

    monkeypatch.setattr(training_run, "train", train)
    return calls


def test_help_names_every_command(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    listed = {line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()}
    assert listed == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0 and f"polyalign {command}" in out


@pytest.mark.parametrize("line", ["frobnicate", "train", "list rewards --jsno", "train x --max-steps 0"])
def test_a_wrong_command_line_ends_with_2(run, line: str) -> None:
    assert run(*line.split())[0] == 2


def test_a_users_mistake_is_one_message_without_traceback(run) -> None:
    code, out, err = run("train", "no/such-recipe")
    assert code == 2 and out == ""
    assert err.startswith("error: no recipe and no file 'no/such-recipe'.") and "Traceback" not in err


def test_verbose_shows_the_traceback_too(run) -> None:
    code, _, err = run("-v", "train", "no/such-recipe")
    assert code == 2 and "Traceback" in err and "error: no recipe and no file" in err


def test_a_bug_of_ours_is_not_dressed_up_as_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyalign.cells.cells", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["cells"])


def test_list_counts_kinds_and_lists_one_by_singular_or_plural(run) -> None:
    code, out, _ = run("list", "--json")
    counts = json.loads(out)
    assert code == 0 and counts["objectives"] >= 9
    plural, singular = run("list", "objectives", "--json")[1], run("list", "objective", "--json")[1]
    assert plural == singular
    rows = json.loads(plural)
    assert len(rows) == counts["objectives"]
    dpo = next(row for row in rows if row["name"] == "dpo")
    assert dpo["distribution"] == "polyalign" and dpo["plugin"] == "core" and dpo["needs"] == ["reference", "edges"]
    text = next(line for line in run("list", "objectives")[1].splitlines() if line.startswith("dpo "))
    assert "arXiv 2305.18290" in text


def test_list_of_an_unknown_kind_suggests_the_nearest(run) -> None:
    code, _, err = run("list", "objectivs")
    assert code == 2 and "Did you mean 'objectives'?" in err


def test_cells_rows_have_the_promised_columns_and_no_claim_without_a_test(run) -> None:
    rows = json.loads(run("cells", "--json")[1])
    assert rows
    for row in rows:
        assert {"family", "modality", "objective", "supported", "reason", "test"} <= set(row)
        assert (row["test"] is not None) == row["supported"] == (row["reason"] == "")
    text = run("cells")[1]
    assert text.splitlines()[-1] == f"{sum(row['supported'] for row in rows)} of {len(rows)} cells are supported"


def test_recipes_lists_every_recipe_and_config_show_resolves_it(run) -> None:
    names = [row["name"] for row in json.loads(run("recipes", "--json")[1])]
    assert names
    code, out, err = run("config", "show", names[0], "training.steps=7", "training.optimizer.learning_rate=3e-4")
    assert code == 0, err
    tree = yaml.safe_load(out)
    assert tree["training"]["steps"] == 7 and tree["training"]["optimizer"]["learning_rate"] == 3e-4


def test_config_show_lists_all_problems_with_exit_code_2(run) -> None:
    name = json.loads(run("recipes", "--json")[1])[0]["name"]
    code, _, err = run("config", "show", name, "training.stpes=7", "objective.name=dpoo")
    assert code == 2
    assert "has 2 problems:" in err and "training.stpes: unknown key. Did you mean 'steps'?" in err
    assert "objective.name: no objectives named 'dpoo'. Did you mean 'dpo'?" in err


def test_config_explain_knows_plugins_and_the_recipe(run) -> None:
    assert "beta: number (> 0)" in run("config", "explain", "objective", "dpo")[1]
    assert "training.steps: whole number (> 0), default 100" in run("config", "explain", "recipe", "training")[1]
    assert "policy: a plugin's name and its keys, required" in run("config", "explain", "recipe")[1]
    code, _, err = run("config", "explain", "objective")
    assert code == 2 and "name which of the objectives to explain: " in err and " dpo," in err


def test_schema_goes_to_a_file_or_to_the_terminal(run, tmp_path: Path) -> None:
    code, out, _ = run("schema")
    assert code == 0 and json.loads(out)["properties"]["training"]
    assert run("schema", "--out", str(tmp_path / "recipe.json"))[0] == 0
    assert json.loads((tmp_path / "recipe.json").read_text()) == json.loads(out)


def test_plugins_lists_who_offers_what(run) -> None:
    code, out, _ = run("plugins")
    assert code == 0 and out == run("plugins", "list")[1]
    core = next(line for line in out.splitlines() if line.startswith("core "))
    assert "polyalign 0.1.0" in core and "objectives" in core


def test_broken_plugin_is_one_line_on_stderr_and_told_by_plugins_and_doctor(run, broken_plugin, caplog) -> None:
    code, out, _ = run("plugins", "list", "--traceback")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["plugin 'sad' of 'sad-plugin' is left out: RuntimeError: so sad"]
    assert code == 0 and f"failed: {lines[0]}" in out and "Traceback" in out
    code, out, _ = run("doctor")
    assert code == 1 and f"BAD  {lines[0]}" in out and "1 problem; see the lines marked BAD" in out
    assert run("plugins", "check", "sad")[0] == 1


def test_plugins_check_passes_core(run) -> None:
    code, out, _ = run("plugins", "check", "core")
    assert code == 0 and "objectives 'dpo'" in out and "listing it imports nothing heavy" in out


def test_doctor_tells_versions_devices_and_plugins(run) -> None:
    code, out, _ = run("doctor")
    assert code == 0, out
    for part in ("python: 3.", "torch: ", "pydantic: ", "cpu: ", "plugin core: polyalign", "all is well"):
        assert part in out


def recipe_file(folder: Path) -> str:
    """Write a recipe that resolves; nothing it names is opened."""
    name = registry().entries("policies")[0].spec.name
    path = folder / "mine.yaml"
    path.write_text(
        f"name: my/run\npolicy: {{name: {name}, base: nowhere}}\nobjective: dpo\ndata: {{train: [{{path: nowhere}}]}}\n"
    )
    return str(path)


def test_train_hands_everything_to_the_loop(run, training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("train", recipe_file(tmp_path), "training.steps=9", "objective.beta=0.5", "--max-steps", "3")
    assert code == 0, err
    ((resolved, folder, resume, max_steps),) = training
    assert resolved.recipe.training.steps == 9 and resolved.objective_config.beta == 0.5
    assert (folder, resume, max_steps) == (Path("runs/my-run"), False, 3)
    assert out.startswith(f"done: {folder}")


def test_train_refuses_folders_that_hold_something_else(run, training, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path)
    code, _, err = run("train", recipe, "--out", str(tmp_path))
    assert code == 2 and "holds files that are no run" in err
    (tmp_path / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("")
    code, _, err = run("train", recipe, "--out", str(tmp_path / "run"))
    assert code == 2 and "already holds a run; go on with --resume" in err
    assert training == []
    assert run("train", recipe, "--out", str(tmp_path / "run"), "--resume")[0] == 0
    assert training[0][1:] == (tmp_path / "run", True, None)


def test_a_run_folder_resumes_in_place(run, training, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(Path(recipe_file(tmp_path)).read_text())
    assert run("train", str(folder), "--resume")[0] == 0
    assert training[0][1] == folder


def test_python_call_is_the_same_as_the_command(training, tmp_path: Path) -> None:
    settings = {"steps": 5, "optimizer": {"learning_rate": 1e-3}}
    finished = polyalign.train(
        recipe_file(tmp_path),
        out=tmp_path / "out",
        max_steps=2,
        objective="ipo",
        training=settings,
    )
    ((resolved, folder, resume, max_steps),) = training
    assert resolved.objective_spec.name == "ipo"
    assert (resolved.recipe.training.steps, resolved.recipe.training.optimizer.learning_rate) == (5, 1e-3)
    assert (finished.folder, folder, resume, max_steps) == (tmp_path / "out", tmp_path / "out", False, 2)


def test_python_overrides_keep_their_types() -> None:
    overrides = {
        "name": "5",
        "training": {"steps": 3},
        "data.train.0.weight": 2.5,
        "policy.names": ["a", "b"],
        "x": None,
        "y": {},
    }
    assert list(launch.override_texts(overrides)) == [
        'name="5"',
        "training.steps=3",
        "data.train.0.weight=2.5",
        'policy.names=["a", "b"]',
        "x=null",
        "y={}",
    ]


def test_python_call_raises_what_the_command_prints(tmp_path: Path) -> None:
    with pytest.raises(PolyalignError, match="Did you mean 'steps'"):
        polyalign.train(recipe_file(tmp_path), training={"stpes": 1})
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        polyalign.trian  # noqa: B018
