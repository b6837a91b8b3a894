"""Starts runs: what ``polyalign train`` and ``polyalign.train()`` share. Light until a run starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.config import Resolved, load_recipe
from polyalign.errors import TrainingError

if TYPE_CHECKING:
    from polyalign.training.run import Run


def train(
    recipe: str | Path, *, out: str | Path | None = None, resume: bool = False, max_steps: int | None = None, **overrides: Any
) -> Run:
    """Train a recipe (a name, a YAML file or a run folder) and return the finished run; its ``folder`` holds everything.

    ``overrides`` change the recipe: ``objective="kto"``, ``training={"steps": 50}`` or ``**{"training.steps": 50}``.
    Raises `ConfigError` with every problem of the recipe.
    """
    return start(str(recipe), list(override_texts(overrides)), Path(out) if out else None, resume, max_steps)


def start(recipe: str, overrides: Sequence[str], out: Path | None, resume: bool, max_steps: int | None) -> Run:
    """Read the recipe, choose the run folder, and train."""
    if max_steps is not None and max_steps < 1:
        raise TrainingError(f"max steps is {max_steps}; expected at least 1")
    resolved = load_recipe(recipe, overrides)
    folder = out or default_folder(recipe, resolved)
    _check_folder(folder, resume)
    from polyalign.training import run

    return run.train(resolved, folder, resume, max_steps)


def _check_folder(folder: Path, resume: bool) -> None:
    """Refuse to write over a finished or broken-off run, or into somebody's other files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise TrainingError(f"the run folder {str(folder)!r} is a file; name another with --out")
    if any(folder.iterdir()) and not (folder / "config.yaml").is_file():
        raise TrainingError(f"the folder {str(folder)!r} holds files that are no run; name another with --out")
    if not resume and any(folder.glob("checkpoints/step-*")):
        raise TrainingError(f"the folder {str(folder)!r} already holds a run; go on with --resume, or name another with --out")


def default_folder(recipe: str, resolved: Resolved) -> Path:
    """Return ``runs/<recipe name>``, or the run folder itself where a run is trained again."""
    return Path(recipe) if Path(recipe).is_dir() else Path("runs") / resolved.recipe.name.replace("/", "-")


def override_texts(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield ``key.path=value`` for each override; a mapping sets its keys one by one. JSON is YAML: values keep their types."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and value:
            yield from override_texts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"
