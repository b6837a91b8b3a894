"""``polyalign score --data`` and ``eval --data``: which rewards or which evaluator is meant, and what they found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.errors import ConfigError

if TYPE_CHECKING:
    from polyalign.rewards.base import Reward
    from polyalign.rewards.rating import Ranking
    from polyalign.slots import PluginSlot


def score_data(
    source: str, overrides: Sequence[str], data: str, out: Path | None, split: str | None, rank: Ranking | None, parts: bool
) -> str:
    """Rate the candidates of a data set by the rewards that ``source`` means; return a line per reward."""
    from polyalign.assets import resolve_dataset
    from polyalign.evaluation.intervals import bootstrap
    from polyalign.rewards.rating import rate

    if out is None:
        raise ConfigError("say where the rated records go: --out FILE.jsonl")
    rated = rate(resolve_dataset(data), out, rewards_of(source, overrides), split=split, rank=rank, parts=parts)
    lines = []
    for name, rows in rated.values.items():
        values = [value for row in rows for value in row]
        line = (
            f"{name}: mean {bootstrap([sum(row) / len(row) for row in rows])} over {len(rows)} records, {len(values)} candidates"
        )
        if agreed := rated.agreement.get(name):
            line += f"; agrees with {bootstrap(agreed)} of the {len(agreed)} preferences in the data"
        lines.append(line)
    ranked = f", {rated.comparisons} comparisons" if rank else ""
    return "\n".join([*lines, f"{out}: {len(rows)} records{ranked}"])


def rewards_of(source: str, overrides: Sequence[str]) -> dict[str, Reward]:
    """Return rewards by label: of a reward's name, ``file.py:function`` or YAML slot with options as overrides, or those of a
    recipe, the rewards it trains on before those it reports."""
    from polyalign.config import load_recipe
    from polyalign.plugins.registry import registry
    from polyalign.plugins.specs import is_function
    from polyalign.rewards.config import RewardSlot
    from polyalign.slots import numbered

    known = [entry.spec.name for entry in registry().entries("rewards")]
    if source in known or is_function("rewards", source):
        return {source: _built({"name": source}, overrides, RewardSlot)}
    if source.lstrip().startswith("{"):
        slot = _read(source, "reward")
        return {str(slot.get("name")): _built(slot, overrides, RewardSlot)}
    if not Path(source).exists() and source not in [entry.spec.name for entry in registry().entries("recipes")]:
        hint = registry().hint("rewards", source)
        raise ConfigError(f"{source!r} is no reward, no recipe and no file.{hint}")
    resolved = load_recipe(source, overrides)
    meant = resolved.online_rewards or resolved.rewards
    if not meant:
        raise ConfigError(f"{source} names no rewards: set report.rewards, or name a reward instead of the recipe")
    labels = numbered([spec.name for spec, _ in meant])
    return {label: spec.load()(config) for label, (spec, config) in zip(labels, meant, strict=True)}


def _read(text: str, what: str) -> dict[str, Any]:
    from polyalign.recipe_text import read_yaml

    tree, problems = read_yaml(text)
    if problems or not isinstance(tree, dict):
        raise ConfigError(f"the {what} {text!r} cannot be read: {problems[0] if problems else 'expected {name: ..., ...}'}")
    return tree


def eval_data(source: str, overrides: Sequence[str], data: str, out: Path | None, split: str | None) -> str:
    """Let an evaluator judge the candidates of a data set, producer by producer; return a line per verdict, also as JSON in
    ``out``. ``source``: an evaluator's name, with options as overrides, or its YAML slot."""
    import json

    from polyalign.assets import resolve_dataset
    from polyalign.evaluation.base import Evaluator
    from polyalign.evaluation.intervals import bootstrap
    from polyalign.records.atomic import write_text
    from polyalign.rewards.rating import candidates_of, stored
    from polyalign.slots import EvaluatorSlot

    slot = _read(source, "evaluator") if source.lstrip().startswith("{") else {"name": source}
    evaluator: Evaluator = _built(slot, overrides, EvaluatorSlot)
    by_producer: dict[str, list[Any]] = {}
    for record, media in stored(resolve_dataset(data), split):
        for item, candidate in zip(candidates_of(record, media), record.candidates, strict=True):
            by_producer.setdefault(candidate.producer or "nobody named", []).append(item)
    lines, found = [], []
    for producer, items in by_producer.items():
        lines.append(f"{producer}: {len(items)} responses; mean [95 % interval]")
        for verdict in evaluator.judge(items):
            notes = "".join(f"; {key}: {value}" for key, value in verdict.notes.items())
            interval = bootstrap(verdict.values)
            lines.append(f"  {verdict.name}: {interval} over {len(verdict.values)}{notes}")
            found.append({"producer": producer, **vars(verdict), "mean": vars(interval)})
    if out is not None:
        write_text(out, json.dumps(found, indent=1))
    return "\n".join(lines)


def _built(slot: dict[str, Any], overrides: Sequence[str], reader: type[PluginSlot]) -> Any:
    from pydantic import ValidationError

    from polyalign.plugins.specs import singular
    from polyalign.recipe_text import Problem, apply_override

    problems = [problem for override in overrides for problem in apply_override(slot, override)]
    if not problems:
        try:
            return reader.model_validate(slot).build()
        except ValidationError as error:
            problems = [
                Problem(".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, "))
                for item in error.errors(include_url=False)
            ]
    title = f"{singular(reader.kind)} {slot.get('name')!r} cannot be built:"
    raise ConfigError("\n".join([title, *(f"  {problem}" for problem in problems)]))
