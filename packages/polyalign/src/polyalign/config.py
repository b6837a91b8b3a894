"""Reads a recipe: YAML and overrides to frozen configuration, every problem reported at once. Light: no torch here.

A slot (policy, objective, a reward, an evaluator) is read in two steps: its ``name`` picks a plugin's spec, whose own
configuration class reads the other keys. Unselected plugins stay unimported.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from polyalign.cells import mismatch
from polyalign.errors import ConfigError, PluginError, nearest
from polyalign.plugins.registry import Registry, registry
from polyalign.plugins.specs import VIEW_GIVES, EvaluatorSpec, ObjectiveSpec, PolicySpec, RewardSpec, Spec, is_function
from polyalign.recipe_help import explain, json_schema, model_at
from polyalign.recipe_text import Problem, apply_override, read_yaml
from polyalign.training.config import Config, Recipe

__all__ = ["Resolved", "explain", "json_schema", "load_recipe", "read_recipe"]

Read = TypeVar("Read", bound=BaseModel)

# Where slots stand in a recipe, and the kind of plugin that fills each; the latter are lists.
_Path = tuple[str, ...]
_SLOTS: dict[_Path, str] = {("policy",): "policies", ("objective",): "objectives"}
_ONLINE, _HELD_OUT = ("online", "rewards"), ("online", "held_out_rewards")
_JUDGES, _EVALUATORS = ("report", "rewards"), ("report", "evaluators")
_SLOT_LISTS: dict[_Path, str] = {_ONLINE: "rewards", _HELD_OUT: "rewards", _JUDGES: "rewards", _EVALUATORS: "evaluators"}
_Rewards = tuple[tuple[RewardSpec, Config], ...]


@dataclass(frozen=True)
class Resolved:
    """A recipe with every name looked up and every default filled in."""

    recipe: Recipe
    policy_spec: PolicySpec
    policy_config: Config
    objective_spec: ObjectiveSpec
    objective_config: Config
    rewards: _Rewards
    evaluators: tuple[tuple[EvaluatorSpec, Config], ...]
    view: str
    source: str
    online_rewards: _Rewards = ()
    held_out_rewards: _Rewards = ()

    def to_yaml(self) -> str:
        """Return the recipe with every default written out; reading it again gives the same run."""
        tree = self.recipe.model_dump(mode="json")
        tree["policy"] = _written(self.policy_spec, self.policy_config)
        tree["objective"] = _written(self.objective_spec, self.objective_config)
        tree["report"]["rewards"] = [_written(spec, config) for spec, config in self.rewards]
        tree["report"]["evaluators"] = [_written(spec, config) for spec, config in self.evaluators]
        if tree["online"] is not None:
            tree["online"]["rewards"] = [_written(spec, config) for spec, config in self.online_rewards]
            tree["online"]["held_out_rewards"] = [_written(spec, config) for spec, config in self.held_out_rewards]
        tree["data"]["view"] = self.view
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, known: Registry | None = None) -> Resolved:
    """Read a recipe by name, by file, or from a run folder (its ``config.yaml``), with ``key.path=value`` overrides.

    Raises `ConfigError` that lists every problem with its dotted path and the nearest valid name. Paths inside a recipe
    are relative to the working directory; those of reward functions (``file.py:function``) may also be relative to the
    recipe. ``known`` is where names are looked up; default: the installed plugins.
    """
    known = known or registry()
    text, source = _find(name_or_path, known)
    return read_recipe(text, overrides, source, known=known, folder=Path(source).parent if Path(source).is_file() else None)


def read_recipe(
    text: str,
    overrides: Sequence[str] = (),
    source: str = "recipe",
    *,
    known: Registry | None = None,
    folder: Path | None = None,
) -> Resolved:
    """Read the text of a recipe; see `load_recipe`. ``source`` is what errors call it, ``folder`` where it lies."""
    tree, problems = read_yaml(text)
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise _error(source, problems or [Problem("", f"a recipe is a mapping of keys to values; found {found}")])
    _expand_names(tree)
    for override in overrides:
        problems += apply_override(tree, override)
        _expand_names(tree)
    if folder is not None:
        tree = _functions_found(tree, folder)
    return _resolve(tree, problems, source, known or registry())


def load_config(reader: type[Read], path: str, overrides: Sequence[str] = ()) -> Read:
    """Read a YAML file of another shape than a recipe of training, with overrides; its slots look themselves up.

    Raises `ConfigError` that lists every problem. Paths are treated as in `load_recipe`.
    """
    text, source = _find(path, registry())
    tree, problems = read_yaml(text)
    if not isinstance(tree, dict):
        raise _error(source, problems or [Problem("", "expected a mapping of keys to values")])
    for override in overrides:
        problems += apply_override(tree, override)
    read, wrong = _parse(reader, _functions_found(tree, Path(source).parent), ())
    if read is None or problems or wrong:
        raise _error(source, [*problems, *wrong])
    return read


def _find(name_or_path: str, known: Registry) -> tuple[str, str]:
    """Return the text of a recipe, and what to call it."""
    path = Path(name_or_path)
    named = {entry.spec.name: entry.spec for entry in known.entries("recipes")}
    if name_or_path in named:
        package, _, inside = named[name_or_path].target.partition(":")
        try:
            return (importlib.resources.files(package) / inside).read_text(encoding="utf-8"), f"recipe {name_or_path!r}"
        except (ImportError, OSError) as error:
            target = named[name_or_path].target
            raise PluginError(f"recipe {name_or_path!r} points at {target!r}, which cannot be read: {error}") from error
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"no recipe and no file {name_or_path!r}.{known.hint('recipes', name_or_path)}")
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _resolve(tree: dict[str, Any], problems: list[Problem], source: str, known: Registry) -> Resolved:
    recipe, wrong = _parse(Recipe, tree, ())
    problems += wrong
    slots: dict[_Path, list[tuple[Spec, Config | None]]] = {path: [] for path in (*_SLOTS, *_SLOT_LISTS)}
    for path, kind, slot in _slots(tree):
        try:
            spec = known.get(kind, slot["name"])
            reader: type[Config] = spec.load_config() or Config
        except PluginError as error:
            problems.append(Problem(".".join((*path, "name")), str(error)))
            continue
        config, wrong = _parse(reader, {key: value for key, value in slot.items() if key != "name"}, path)
        problems += wrong
        slots[path if path in slots else path[:-1]].append((spec, config))
    if slots[("policy",)] and slots[("objective",)]:
        policy, objective = cast(PolicySpec, slots[("policy",)][0][0]), _declared(*slots[("objective",)][0])
        reason = mismatch(policy, objective)
        if reason:
            problems.append(Problem("objective.name", f"{objective.name!r} cannot train {policy.name!r}: {reason}"))
        config = slots[("policy",)][0][1]
        for need, key in sorted(policy.switches.items()):
            asked = need in {*objective.needs, objective.unless}
            if asked and config is not None and not getattr(config, key):
                problems.append(Problem(f"policy.{key}", f"{objective.name!r} needs {need}: set it to true"))
        view = _at(tree, ("data", "view"))
        if view in VIEW_GIVES and (lacking := objective.lacking_in(view)):
            way_out = f"leave it out, or write {objective.view}"
            problems.append(Problem("data.view", f"{view!r} gives no {lacking}, which {objective.name!r} needs; {way_out}"))
        answered = objective.view if view in (None, "auto") else view
        if _at(tree, ("data", "self_samples")) is not None and answered != "self_samples":
            problems.append(
                Problem("data.self_samples", f"{objective.name!r} here reads the {answered!r} view, not these; drop it")
            )
        problems += _online_problems(tree, objective)
    if problems:
        raise _error(source, problems)
    assert recipe is not None
    return Resolved(
        recipe=recipe,
        policy_spec=policy,
        policy_config=cast(Config, slots[("policy",)][0][1]),
        objective_spec=objective,
        objective_config=cast(Config, slots[("objective",)][0][1]),
        rewards=cast(_Rewards, tuple(slots[_JUDGES])),
        evaluators=cast("tuple[tuple[EvaluatorSpec, Config], ...]", tuple(slots[_EVALUATORS])),
        view=objective.view if recipe.data.view == "auto" else recipe.data.view,
        source=source,
        online_rewards=cast(_Rewards, tuple(slots[_ONLINE])),
        held_out_rewards=cast(_Rewards, tuple(slots[_HELD_OUT])),
    )


def _online_problems(tree: dict[str, Any], objective: ObjectiveSpec) -> Iterator[Problem]:
    """Yield where the view of the data and the ``online`` section do not go together."""
    view = _at(tree, ("data", "view")) or "auto"
    prompts = (objective.view if view == "auto" else view) == "prompts"
    if "sample_grad" in objective.needs:  # it draws for itself, inside the step, and asks its own reward
        if _at(tree, ("online",)) is not None:
            yield Problem("online", f"{objective.name!r} draws its own samples and has a reward of its own; drop it")
        return
    if prompts and _at(tree, ("online",)) is None:
        yield Problem("online", "missing; the policy answers prompts itself, so say who judges: online: {rewards: [...]}")
    if not prompts and _at(tree, ("online",)) is not None:
        way_out = "; drop it, or write data.view: prompts" if not objective.lacking_in("prompts") else "; drop it"
        yield Problem("online", f"{objective.name!r} here reads the {objective.view!r} view of the data, not rollouts{way_out}")


def _declared(spec: Spec, config: Config | None) -> ObjectiveSpec:
    """Return the objective's spec; that of a weighted sum depends on its terms."""
    from polyalign.objectives.terms import WeightedSumConfig

    assert isinstance(spec, ObjectiveSpec)
    return config.declared(spec) if isinstance(config, WeightedSumConfig) else spec


def _at(tree: Any, path: _Path) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _slots(tree: dict[str, Any]) -> Iterator[tuple[_Path, str, dict[str, Any]]]:
    """Yield (path, kind, keys) of each slot that has a name; what has none is the recipe schema's complaint."""
    places = [(path, kind, _at(tree, path)) for path, kind in _SLOTS.items()]
    for path, kind in _SLOT_LISTS.items():
        items = _at(tree, path)
        places += [((*path, str(i)), kind, item) for i, item in enumerate(items if isinstance(items, list) else ())]
    for path, kind, slot in places:
        if isinstance(slot, dict) and isinstance(slot.get("name"), str):
            yield path, kind, slot


def _expand_names(tree: dict[str, Any]) -> None:
    """A slot written as bare text is its name: ``objective: dpo`` means ``objective: {name: dpo}``."""
    for path in _SLOTS:
        if isinstance(tree.get(path[0]), str):
            tree[path[0]] = {"name": tree[path[0]]}
    for path in _SLOT_LISTS:
        items = _at(tree, path)
        for position, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, str):
                items[position] = {"name": item}


def _functions_found(tree: Any, folder: Path) -> Any:
    """Return the tree with each ``file.py:function`` that lies beside the recipe, and not where we are, named by its path."""
    if isinstance(tree, dict):
        return {key: _functions_found(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_functions_found(value, folder) for value in tree]
    if isinstance(tree, str) and is_function("rewards", tree):
        path, _, function = tree.rpartition(":")
        return f"{folder / path}:{function}" if not Path(path).is_file() and (folder / path).is_file() else tree
    return tree


def _written(spec: Spec, config: Config) -> dict[str, Any]:
    return {"name": spec.name, **config.model_dump(mode="json")}


def _parse(reader: type[Read], tree: Any, prefix: _Path) -> tuple[Read | None, list[Problem]]:
    try:
        read = reader.model_validate(tree)
        return read, list(_switched_numbers(tree, read.model_dump(), prefix))
    except ValidationError as error:
        items = error.errors(include_url=False)
        places = [item["loc"] for item in items]
        # a list whose only item is wrong is also "too short" to pydantic; the item's own complaint is the useful one
        items = [
            item for item in items if item["type"] != "too_short" or not any(_inside(place, item["loc"]) for place in places)
        ]
        return None, [_problem(reader, item, prefix) for item in items]


def _switched_numbers(given: Any, read: Any, path: _Path) -> Iterator[Problem]:
    """Yield each true or false that pydantic took for the number 1 or 0."""
    if isinstance(given, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        yield Problem(".".join(path), f"expected a number, found {str(given).lower()}")
    elif isinstance(given, dict) and isinstance(read, dict):
        for key in given.keys() & read.keys():
            yield from _switched_numbers(given[key], read[key], (*path, str(key)))
    elif isinstance(given, list) and isinstance(read, list | tuple):
        for position, (item, value) in enumerate(zip(given, read, strict=False)):
            yield from _switched_numbers(item, value, (*path, str(position)))


def _inside(place: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _problem(reader: type[BaseModel], item: Any, prefix: _Path) -> Problem:
    """Say one pydantic complaint in our words: where, what was found, what was expected."""
    location, kind, found = item["loc"], item["type"], item["input"]
    path = ".".join(str(key) for key in (*prefix, *location))
    if kind == "extra_forbidden":
        owner = model_at(reader, location[:-1])
        keys = [*owner.model_fields] if owner else []
        known = f" Known keys: {', '.join(keys)}." if keys else " No keys are known here."
        return Problem(path, f"unknown key.{nearest(str(location[-1]), keys) or _elsewhere(str(location[-1])) or known}")
    if kind == "missing":
        return Problem(path, "missing; a value is required")
    message = item["msg"].removeprefix("Value error, ")
    if kind in ("value_error", "assertion_error"):
        return Problem(path, message)
    expected = item.get("ctx", {}).get("expected", "") if kind == "literal_error" and isinstance(found, str) else ""
    choice = nearest(str(found), [text.strip("' ") for text in expected.replace(" or ", ",").split(",")]) if expected else ""
    way_out = ""
    if kind == "string_type" and isinstance(found, int | float | bool):
        way_out = "; put it in quotes"
    elif kind in ("float_parsing", "int_parsing") and str(found).lower() in ("no", "none", "off", "nothing"):
        way_out = "; for none write null"
    message = message.replace("Input", "it").replace("Tuple", "the list").replace("valid tuple", "list")
    return Problem(path, f"{message}, found {_short(found)}{way_out}{'.' if choice else ''}{choice}")


def _elsewhere(key: str) -> str:
    """Return where in a recipe a key of this name belongs, or an empty string."""
    places = [path for path in _paths(Recipe, "") if path.rpartition(".")[2] == key]
    return f" Did you mean {places[0]!r}?" if places else ""


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from _paths(field.annotation, f"{prefix}{name}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _error(source: str, problems: Sequence[Problem]) -> ConfigError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError("\n".join([f"{source} has {count}:", *(f"  {problem}" for problem in problems)]))
