"""Reading recipes: every problem at once, each with its dotted path and the nearest valid name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import Field

from polyalign.config import explain, json_schema, load_recipe, read_recipe
from polyalign.errors import ConfigError, PolyalignError
from polyalign.plugins.loader import Discovery, Plugin, PluginFailure
from polyalign.plugins.registry import Registry
from polyalign.plugins.specs import EvaluatorSpec, ObjectiveSpec, PolicySpec, RecipeSpec, RewardSpec
from polyalign.training.config import Config


class ToyLora(Config):
    rank: int = Field(4, gt=0)


class ToyPolicyConfig(Config):
    base: str
    lora: ToyLora | None = None
    scale: float = 1.0
    names: tuple[str, ...] = ()


class ToyObjectiveConfig(Config):
    beta: float = Field(0.1, gt=0, description="strength of the reference")
    loss: str = "sigmoid"


HERE = __name__
POLICY = PolicySpec(
    name="toy", summary="a toy", target="x:y", config="toy_config:ToyPolicyConfig", family="tokens", provides=("log_probs",)
)
SPECS = {
    "policies": (POLICY, replace(POLICY, name="bare", config=None)),
    "objectives": (
        ObjectiveSpec(
            name="dpo", summary="s", target="x:y", config="toy_config:ToyObjectiveConfig", source="a paper", needs=("edges",)
        ),
        ObjectiveSpec(name="kto", summary="s", target="x:y", source="a paper", view="unpaired"),
        ObjectiveSpec(name="value", summary="s", target="x:y", source="a paper", needs=("values",)),
        ObjectiveSpec(name="odd", summary="s", target="x:y", source="a paper", unsupported={"tokens": "tokens have no odds"}),
        ObjectiveSpec(name="lost", summary="s", target="x:y", source="a paper", config="not_here.config:Lost"),
    ),
    "rewards": (RewardSpec(name="clip_score", summary="s", target="x:y"),),
    "evaluators": (EvaluatorSpec(name="style", summary="s", target="x:y", config="toy_config:ToyObjectiveConfig"),),
    "recipes": (RecipeSpec(name="toy/dpo", summary="s", target="toy_recipes:inside/dpo.yaml"),),
}
KNOWN = Registry(
    Discovery((Plugin("toy", "polyalign-toy", "1", SPECS),), (PluginFailure("polyalign-sad", "sad", "it is sad"),))  # type: ignore[arg-type]
)
TEXT = """
name: toy-run
policy: {name: toy, base: here}
objective: {name: dpo}
data: {train: [{path: data}]}
"""


@pytest.fixture(autouse=True)
def _toy_config_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    module = ModuleType("toy_config")
    module.ToyPolicyConfig, module.ToyObjectiveConfig = ToyPolicyConfig, ToyObjectiveConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_config", module)


def read(text: str = TEXT, *overrides: str):
    return read_recipe(text, list(overrides), known=KNOWN)


def problems(text: str = TEXT, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    heading, *lines = str(caught.value).splitlines()
    assert heading == f"recipe has {len(lines)} problem{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]


def test_slots_are_read_by_the_plugins_own_configuration_class() -> None:
    resolved = read(TEXT, "policy.lora.rank=8", "objective.beta=0.5")
    assert resolved.policy_spec is POLICY
    assert resolved.policy_config == ToyPolicyConfig(base="here", lora=ToyLora(rank=8))
    assert resolved.objective_config == ToyObjectiveConfig(beta=0.5)
    assert resolved.recipe.training.steps == 100


def test_all_problems_come_at_once_with_paths_and_nearest_names() -> None:
    text = """
    name: toy-run
    policy: {name: toy, baze: here, lora: {rnak: 3}, scale: big}
    objective: {name: dppo}
    data: {train: [{path: data, wieght: 2}], veiw: pairs}
    training: {optimizer: {schedule: cosin}, steps: many}
    report: {rewards: [{name: clip_score, wild: 1}, {name: clap}], evaluators: [{name: style, beta: -1}]}
    """
    found = dict(line.split(": ", 1) for line in problems(text))
    assert set(found) == {
        "policy.base",
        "policy.baze",
        "policy.lora.rnak",
        "policy.scale",
        "objective.name",
        "data.train.0.wieght",
        "data.veiw",
        "training.optimizer.schedule",
        "training.steps",
        "report.rewards.0.wild",
        "report.rewards.1.name",
        "report.evaluators.0.beta",
    }
    assert found["policy.base"] == "missing; a value is required"
    assert found["policy.baze"] == "unknown key. Did you mean 'base'?"
    assert found["policy.lora.rnak"] == "unknown key. Did you mean 'rank'?"
    assert found["data.train.0.wieght"] == "unknown key. Did you mean 'weight'?"
    assert "Did you mean 'dpo'?" in found["objective.name"] and "Plugins left out: sad" in found["objective.name"]
    assert found["training.optimizer.schedule"].endswith("found 'cosin'. Did you mean 'cosine'?")
    assert "found 'many'" in found["training.steps"]
    assert "No keys are known here" in found["report.rewards.0.wild"]


def test_a_key_in_the_wrong_place_is_told_its_right_place() -> None:
    assert problems(TEXT + "learning_rate: 1e-5\n") == [
        "learning_rate: unknown key. Did you mean 'training.optimizer.learning_rate'?"
    ]


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1e5", 1e5), ("'3e-4'", 3e-4), ("3", 3.0), ("-.5e1", -5.0)])
def test_numbers_as_people_write_them_reach_float_fields(text: str, value: float) -> None:
    """PyYAML alone reads 3e-4 and 1e5 as text."""
    assert read(TEXT, f"policy.scale={text}").policy_config.scale == value
    inside = TEXT.replace("base: here", f"base: here, scale: {text}")
    assert read(inside).policy_config.scale == value


def test_scientific_notation_counts_steps_only_if_whole() -> None:
    assert read(TEXT, "training.steps=1e3").recipe.training.steps == 1000
    assert "training.steps" in problems(TEXT, "training.steps=15e-1")[0]


def test_no_is_text_not_false() -> None:
    """YAML 1.1 turns the country code ``no`` into false; here it stays text, and still switches a switch off."""
    assert read(TEXT + "licence: no\n").recipe.licence == "no"
    assert read(TEXT, "training.gradient_checkpointing=no").recipe.training.gradient_checkpointing is False
    (line,) = problems(TEXT, "training.ema=no")
    assert line.startswith("training.ema: ") and line.endswith("found 'no'; for none write null")


@pytest.mark.parametrize("text", ["010", "1:30", "2024-01-02"])
def test_old_yaml_readings_do_not_surprise(text: str) -> None:
    """YAML 1.1 reads these as eight, ninety and a date."""
    if text == "010":
        assert read(TEXT, f"training.steps={text}").recipe.training.steps == 10
    else:
        assert read(TEXT, f"licence={text}").recipe.licence == text


def test_a_number_where_text_belongs_asks_for_quotes() -> None:
    (line,) = problems(TEXT, "name=5")
    assert line.startswith("name: ") and line.endswith("found 5; put it in quotes")
    assert read(TEXT, "name='5'").recipe.name == "5"


def test_duplicate_keys_are_refused_with_both_lines() -> None:
    assert problems("name: a\n" + TEXT.lstrip()) == ["line 2: duplicate key 'name' (first on line 1); keep one"]


def test_broken_yaml_names_line_and_column() -> None:
    (line,) = problems("name: [a\npolicy: b: c\n")
    assert line.startswith("line 2, column ")


@pytest.mark.parametrize(("text", "found"), [("", "nothing"), ("- a\n", "a list"), ("just text", "a str")])
def test_a_recipe_that_is_no_mapping_is_refused(text: str, found: str) -> None:
    assert problems(text) == [f"a recipe is a mapping of keys to values; found {found}"]


def test_overrides_reach_into_lists_append_and_replace_slots() -> None:
    changes = [
        "data.train.0.weight=2",
        "data.train.1.path=more",
        "objective=kto",
        "policy.names=[a, b]",
        "report.rewards=[clip_score]",
    ]
    resolved = read(TEXT, *changes)
    assert [(source.path, source.weight) for source in resolved.recipe.data.train] == [("data", 2.0), ("more", 1.0)]
    assert resolved.objective_spec.name == "kto"
    assert resolved.policy_config.names == ("a", "b")
    assert [spec.name for spec, _ in resolved.rewards] == ["clip_score"]


def test_later_override_wins_over_earlier_and_over_the_file() -> None:
    assert read(TEXT, "name=first", "name=second").recipe.name == "second"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("steps", "override 'steps' is not of the form key.path=value"),
        ("training..steps=3", "override 'training..steps=3' is not of the form key.path=value"),
        ("name.first=a", "name.first: name is 'toy-run', which has no keys"),
        ("data.train.4.path=a", "data.train.4.path: data.train is a list of 1; expected 0 to 1 (which appends), found '4'"),
        (
            "data.train.last.path=a",
            "data.train.last.path: data.train is a list of 1; expected 0 to 1 (which appends), found 'last'",
        ),
        ("name=[a", "name: the value '[a' cannot be read"),
        ("trainig.steps=3", "trainig: unknown key. Did you mean 'training'?"),
    ],
)
def test_wrong_overrides_are_explained(override: str, complaint: str) -> None:
    assert problems(TEXT, override)[0].startswith(complaint)


def test_bare_text_is_the_name_of_a_slot() -> None:
    assert read(TEXT.replace("{name: dpo}", "dpo")).objective_spec.name == "dpo"


def test_view_comes_from_the_objective_unless_the_recipe_says_so() -> None:
    assert read(TEXT).view == "pairs"
    assert read(TEXT, "objective=kto").view == "unpaired"
    assert read(TEXT, "data.view=rankings").view == "rankings"


def test_a_view_that_never_gives_what_the_objective_needs_is_refused() -> None:
    """Otherwise the run would start and train on nothing."""
    (line,) = problems(TEXT, "data.view=unpaired")
    assert line == "data.view: 'unpaired' gives no edges, which 'dpo' needs; leave it out, or write pairs"


def test_true_is_not_a_number() -> None:
    assert problems(TEXT, "training.steps=true") == ["training.steps: expected a number, found true"]
    assert problems(TEXT, "policy.scale=false") == ["policy.scale: expected a number, found false"]
    assert problems(TEXT, "data.train.0.weight=true") == ["data.train.0.weight: expected a number, found true"]


def test_an_objective_that_cannot_train_the_policy_is_refused_before_anything_starts() -> None:
    (line,) = problems(TEXT, "objective=value")
    assert line == "objective.name: 'value' cannot train 'toy': it needs values; the policy provides log_probs"
    assert problems(TEXT, "objective=odd") == ["objective.name: 'odd' cannot train 'toy': tokens have no odds"]


def test_a_configuration_class_whose_package_is_missing_is_one_problem_among_others() -> None:
    found = problems(TEXT, "objective=lost", "training.steps=0")
    assert any(line.startswith("objective.name: ") and "not_here" in line for line in found)
    assert any(line.startswith("training.steps: ") for line in found)


def test_cross_field_checks_are_reported_in_their_own_words() -> None:
    (line,) = problems(TEXT, "training.micro_batch_size=2", "training.micro_batch_budget=100")
    assert line == "training.micro_batch_size and training.micro_batch_budget exclude each other; keep one"


def test_written_recipe_has_every_default_and_reads_back_to_the_same_run() -> None:
    changes = (
        "policy.lora.rank=8",
        "policy.scale=3e-4",
        "report.evaluators=[style]",
        "report.rewards=[clip_score]",
        "objective.beta=1e-7",
    )
    resolved = read(TEXT, *changes)
    text = resolved.to_yaml()
    tree = yaml.safe_load(text)  # also for people whose reader is plain PyYAML
    assert tree["training"]["optimizer"]["learning_rate"] == 1e-5
    assert tree["policy"] == {"name": "toy", "base": "here", "lora": {"rank": 8}, "scale": 3e-4, "names": []}
    assert tree["data"]["view"] == "pairs"
    again = read(text)
    assert again.to_yaml() == text
    assert (again.policy_config, again.objective_config) == (resolved.policy_config, resolved.objective_config)
    assert (again.rewards, again.evaluators) == (resolved.rewards, resolved.evaluators)


def test_recipe_is_found_by_name_by_file_and_in_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "toy_recipes"
    (package / "inside").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inside" / "dpo.yaml").write_text(TEXT)
    monkeypatch.syspath_prepend(str(tmp_path))
    by_name = load_recipe("toy/dpo", known=KNOWN)
    assert by_name.source == "recipe 'toy/dpo'"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(by_name.to_yaml())
    by_run, by_file = (load_recipe(str(tmp_path / "run" / end), known=KNOWN) for end in ("", "config.yaml"))
    assert by_run.to_yaml() == by_file.to_yaml() == by_name.to_yaml()


def test_unknown_recipe_gives_nearest_and_list() -> None:
    with pytest.raises(ConfigError, match=r"no recipe and no file 'toy/dop'. Did you mean 'toy/dpo'.*Installed recipes: toy/dpo"):
        load_recipe("toy/dop", known=KNOWN)


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        load_recipe(str(path), known=KNOWN)


def test_explain_shows_keys_types_defaults_bounds_and_meaning() -> None:
    text = explain("objective", "dpo", known=KNOWN)
    assert "dpo (objective, from polyalign-toy)" in text and "source: a paper" in text
    assert "beta: number (> 0), default 0.1 - strength of the reference" in text
    policy = explain("policies", "toy", known=KNOWN)
    assert "base: text, required" in policy
    assert "lora: section or none, default none" in policy and "lora.rank: whole number (> 0), default 4" in policy
    assert "names: list of text, default []" in policy
    assert explain("reward", "clip_score", known=KNOWN).endswith("takes no options")


def test_explain_reads_the_recipe_itself() -> None:
    assert "training.optimizer.learning_rate: number (> 0), default 1e-05" in explain("recipe", "training.optimizer")
    assert explain("recipe", "training.steps") == "training.steps: whole number (> 0), default 100"
    assert "data.train.N.path: text, required" in explain("recipe", ".")
    with pytest.raises(PolyalignError, match="Did you mean 'optimizer'"):
        explain("recipe", "training.optimiser")


def test_schema_knows_each_plugins_keys_and_survives_a_broken_one() -> None:
    schema = json_schema(known=KNOWN)
    json.dumps(schema)
    choices = {choice["title"]: choice for choice in schema["$defs"]["objectives"]["anyOf"] if "title" in choice}
    assert set(choices) == {"dpo", "kto", "value", "odd", "lost"}
    assert choices["dpo"]["properties"]["beta"]["exclusiveMinimum"] == 0
    assert choices["dpo"]["additionalProperties"] is False
    policy = next(choice for choice in schema["$defs"]["policies"]["anyOf"] if choice.get("title") == "toy")
    (reference,) = [part["$ref"] for part in policy["properties"]["lora"]["anyOf"] if "$ref" in part]
    assert schema["$defs"][reference.removeprefix("#/$defs/")]["properties"]["rank"]["default"] == 4


SUM = ObjectiveSpec(
    name="sum",
    summary="s",
    target="x:y",
    config="polyalign.objectives.terms:WeightedSumConfig",
    source="a paper",
    needs=("edges",),
)
SUMS = Registry(
    Discovery(
        (
            Plugin(
                "toy", "polyalign-toy", "1", {**SPECS, "objectives": (SUM,), "policies": (replace(POLICY, family="continuous"),)}
            ),
        ),
        (),
    )  # type: ignore[arg-type]
)


def with_terms(*terms: str) -> str:
    return TEXT.replace("{name: dpo}", f"{{name: sum, terms: [{', '.join(terms)}]}}")


def test_terms_of_a_weighted_sum_are_slots_that_decide_needs_and_view() -> None:
    resolved = read_recipe(with_terms("instruct_engine", "{name: dpo, weight: 0.5, beta: 3}"), known=SUMS)
    assert resolved.view == "grids"
    assert set(resolved.objective_spec.needs) == {"reference", "edges", "grid"}
    written = yaml.safe_load(resolved.to_yaml())["objective"]["terms"]
    assert [(term["name"], term["weight"], term["beta"]) for term in written] == [
        ("instruct_engine", 1.0, 2000.0),
        ("dpo", 0.5, 3.0),
    ]
    assert read_recipe(resolved.to_yaml(), known=SUMS).to_yaml() == resolved.to_yaml()


def test_problems_of_terms_come_with_their_paths() -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(with_terms("{name: dpo, beta: -1}", "dqo", "{name: sft, x: 1}"), known=SUMS)
    found = dict(line.strip().split(": ", 1) for line in str(caught.value).splitlines()[1:])
    assert set(found) == {"objective.terms.0.beta", "objective.terms.1", "objective.terms.2"}
    assert "Did you mean 'dpo'?" in found["objective.terms.1"]


def test_a_term_that_cannot_train_the_policy_or_has_no_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sum' cannot train 'toy': orpo: a density of continuous actions"):
        read_recipe(with_terms("dpo", "orpo"), known=SUMS)
    with pytest.raises(ConfigError, match="data.view: 'pairs' gives no grid, which 'sum' needs; leave it out, or write grids"):
        read_recipe(with_terms("dpo", "instruct_engine"), ["data.view=pairs"], known=SUMS)
