"""What a recipe may say: explanations for people, a JSON Schema for editors. Light: no torch here."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from polyalign.errors import ConfigError, PluginError, nearest
from polyalign.plugins.registry import Registry, registry
from polyalign.plugins.specs import ObjectiveSpec, PolicySpec, plural, singular
from polyalign.training.config import Recipe, Slot

_SLOT_KINDS = ("policies", "objectives", "rewards", "evaluators")


def model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the model that a validation error's location lies in; None where it is not a model."""
    here: Any = model
    for key in location:
        if isinstance(key, str) and isinstance(here, type) and issubclass(here, BaseModel):
            if key not in here.model_fields:
                return None
            here = here.model_fields[key].annotation
        elif isinstance(key, str) and (named := [m for m in _models(here) if m.__name__ == key]):
            here = named[0]  # pydantic puts the class name of a union's member into the location
            continue
        candidates = _models(here)
        if not candidates:
            return None
        here = candidates[0] if len(candidates) == 1 else here
    return here if isinstance(here, type) and issubclass(here, BaseModel) else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside Optional, tuple, list, dict, Annotated and unions."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def explain(kind: str, name: str, *, known: Registry | None = None) -> str:
    """Return what one plugin thing is, who ships it, and every key of its configuration with type, default and meaning.

    ``kind`` may be singular or plural. ``explain("recipe", "training.optimizer")`` explains a section of a recipe itself.
    """
    if kind == "recipe" and (name == "." or name.partition(".")[0] in Recipe.model_fields):
        return _explain_section(name)
    known, kind = known or registry(), plural(kind)
    spec = known.get(kind, name)
    owner = next((entry.distribution for entry in known.entries(kind) if entry.spec is spec), "a file of yours")
    lines = [f"{spec.name} ({singular(kind)}, from {owner})", f"  {spec.summary}"]
    if isinstance(spec, ObjectiveSpec):
        lines += [f"  source: {spec.source}"]
        lines += [f"  view: {spec.view}; scope: {spec.scope}; needs: {', '.join(spec.needs) or 'nothing'}"]
        lines += [f"  not for {family}: {why}" for family, why in sorted(spec.unsupported.items())]
    if isinstance(spec, PolicySpec):
        lines += [f"  family: {spec.family}; {'+'.join(spec.inputs) or '-'} -> {'+'.join(spec.outputs) or '-'}"]
        lines += [f"  provides: {', '.join(spec.provides)}"]
    model = spec.load_config()
    return "\n".join([*lines, "", *(_fields(model, "") if model else ["takes no options"])])


def _explain_section(name: str) -> str:
    model: Any = Recipe
    for key in [] if name == "." else name.split("."):
        fields = model.model_fields
        if key not in fields:
            raise ConfigError(f"a recipe has no {name!r}.{nearest(key, fields)} Known here: {', '.join(fields)}.")
        inner = _models(fields[key].annotation)
        if not inner:
            return _field(name, fields[key])
        model = inner[0]
    about = inspect.cleandoc(model.__doc__ or "").splitlines()
    return "\n".join([*about, "", *_fields(model, "" if name == "." else f"{name}.")])


def _fields(model: type[BaseModel], prefix: str) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        lines.append(_field(f"{prefix}{name}", field))
        for inner in _models(field.annotation):
            if inner.model_fields and inner.__name__ != "Slot":
                lines += _fields(inner, f"{prefix}{name}.{'N.' if _is_many(field.annotation) else ''}")
    return lines


def _field(path: str, field: FieldInfo) -> str:
    limits = [(sign, getattr(mark, word)) for mark in field.metadata for word, sign in _BOUNDS if hasattr(mark, word)]
    bounds = ", ".join(f"{sign} {limit}" for sign, limit in limits)
    default = "required" if field.is_required() else f"default {_shown(field.get_default(call_default_factory=True))}"
    line = f"{path}: {_type_text(field.annotation)}{f' ({bounds})' if bounds else ''}, {default}"
    return f"{line} - {field.description}" if field.description else line


_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="), ("min_length", "length >="), ("max_length", "length <="))


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "as below"
    return "none" if value is None else repr(list(value) if isinstance(value, tuple) else value)


def _is_many(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return origin in (list, tuple) or any(_is_many(part) for part in typing.get_args(annotation))


def _type_text(annotation: Any) -> str:
    """Return a type as people say it: ``one of a, b``, ``list of number``, ``text or none``."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(str(part) for part in parts)}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part) for part in parts)
    if origin in (list, tuple):
        kinds = [part for part in parts if part is not Ellipsis]
        return f"list of {' and '.join(dict.fromkeys(_type_text(part) for part in kinds))}"
    if origin is dict:
        return f"mapping of {_type_text(parts[0])} to {_type_text(parts[1])}"
    if origin is typing.Annotated:
        return _type_text(parts[0])
    words = {str: "text", int: "whole number", float: "number", bool: "true/false", type(None): "none", Any: "anything"}
    if annotation in words:
        return words[annotation]
    return "a plugin's name and its keys" if isinstance(annotation, type) and issubclass(annotation, Slot) else "section"


def json_schema(*, known: Registry | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a recipe, with the keys of every installed policy, objective, reward and evaluator."""
    known = known or registry()
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    for kind in _SLOT_KINDS:
        choices: list[dict[str, Any]] = [{"enum": [entry.spec.name for entry in known.entries(kind)]}]
        for entry in known.entries(kind):
            choices.append(_slot_schema(entry.spec, singular(kind), definitions))
        definitions[kind] = {"anyOf": choices}
    schema["properties"]["policy"] = {"$ref": "#/$defs/policies"}
    schema["properties"]["objective"] = {"$ref": "#/$defs/objectives"}
    for kind in ("rewards", "evaluators"):
        definitions["ReportConfig"]["properties"][kind]["items"] = {"$ref": f"#/$defs/{kind}"}
    for name in ("rewards", "held_out_rewards"):
        definitions["OnlineConfig"]["properties"][name]["items"] = {"$ref": "#/$defs/rewards"}
    definitions.pop("Slot", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _slot_schema(spec: Any, kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    try:
        model = spec.load_config()
    except PluginError:  # its package is missing here: editors accept any keys, the reader will say what to install
        return {"type": "object", "title": spec.name, "properties": {"name": {"const": spec.name}}, "required": ["name"]}
    if model:
        owner = f"{kind}.{spec.name}.".replace("/", ".")
        own = model.model_json_schema(ref_template=f"#/$defs/{owner}{{model}}")
        definitions.update({f"{owner}{name}": inner for name, inner in own.pop("$defs", {}).items()})
    return {
        "type": "object",
        "title": spec.name,
        "description": spec.summary,
        "properties": {"name": {"const": spec.name}, **own.get("properties", {})},
        "required": ["name", *own.get("required", [])],
        "additionalProperties": False,
    }
