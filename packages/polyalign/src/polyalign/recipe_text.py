"""From the text of a recipe to a plain tree: YAML read strictly, and ``key.path=value`` overrides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe. ``path`` is dotted; empty when the problem is the recipe as a whole."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class _Loader(yaml.SafeLoader):
    """YAML as people read it: ``3e-4`` and ``1e5`` are numbers, ``no`` and ``on`` are text, ``1:30`` is not 90 seconds,
    a date is text, and a key may stand only once in a mapping."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[Problem] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                self.problems.append(Problem("", f"line {line}: a key must be text, not a list or a mapping"))
            elif key in lines and key != "<<":
                self.problems.append(Problem("", f"line {line}: duplicate key {key!r} (first on line {lines[key]}); keep one"))
            else:
                lines[key] = line
        if None in (key_node.value if isinstance(key_node, yaml.ScalarNode) else None for key_node, _ in node.value):
            return {}
        self.flatten_mapping(node)
        return {str(key.value): self.construct_object(value, deep=True) for key, value in node.value}


_DIGIT_FIRST = list("-+.0123456789")
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", _DIGIT_FIRST),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _DIGIT_FIRST),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)  # PyYAML would read 010 as eight


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


def read_yaml(text: str) -> tuple[Any, list[Problem]]:
    """Return the tree and what is wrong with the text; the tree is None where it cannot be read at all."""
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return None, [*loader.problems, Problem("", f"{where}not valid YAML: {error.problem}")]
    except yaml.YAMLError as error:
        return None, [Problem("", f"not valid YAML: {error}")]
    finally:
        loader.dispose()


def apply_override(tree: dict[str, Any], override: str) -> list[Problem]:
    """Set one ``key.path=value`` in the tree; numbers in a path are list positions. Returns why it could not be set."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        return [Problem("", f"override {override!r} is not of the form key.path=value")]
    value, wrong = read_yaml(text)
    if wrong:
        return [Problem(path, f"the value {text!r} cannot be read ({wrong[0]}); put it in quotes")]
    complaint = _set(tree, keys, value)
    return [Problem(path, complaint)] if complaint else []


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> str:
    """Set one value, making mappings on the way. Returns a complaint, or an empty string."""
    here: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        so_far = ".".join(keys[:depth])
        if isinstance(here, list):
            if not key.isdecimal() or int(key) > len(here):
                return f"{so_far} is a list of {len(here)}; expected 0 to {len(here)} (which appends), found {key!r}"
            position = int(key)
            if position == len(here):
                here.append(value if last else {})
            elif last:
                here[position] = value
            here = here[position]
        elif isinstance(here, dict):
            if last:
                here[key] = value
            elif not isinstance(here.get(key), dict | list):
                if here.get(key) is not None:
                    return f"{'.'.join(keys[: depth + 1])} is {here[key]!r}, which has no keys"
                here[key] = {}
            here = here[key]
        else:
            return f"{so_far} is {here!r}, which has no keys"
    return ""
