"""``polyalign recipes``, ``config show``, ``config explain`` and ``schema``: what can be run, and what a recipe may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command()(recipes)
    app.command()(schema)
    app.add_typer(config, name="config")


def recipes(
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """List the installed recipes."""
    from polyalign.cli.inspection import listing

    listing("recipes", as_json)


def schema(
    out: Annotated[Path | None, typer.Option(help="file to write; default: standard output")] = None,
) -> None:
    """Write the JSON Schema of a recipe, for editors."""
    from polyalign.recipe_help import json_schema

    text = json.dumps(json_schema(), indent=1)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    else:
        typer.echo(text)


config = typer.Typer(help="Show and explain configuration.", no_args_is_help=True, rich_markup_mode=None)


@config.command()
def show(
    recipe: Annotated[str, typer.Argument(help="a recipe name, a YAML file or a run folder")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE")] = None,
) -> None:
    """Print a recipe with every default written out."""
    from polyalign.config import load_recipe

    typer.echo(load_recipe(recipe, overrides or []).to_yaml(), nl=False)


@config.command()
def explain(
    kind: Annotated[str, typer.Argument(help="policy, objective, reward, evaluator ... or recipe")],
    name: Annotated[str, typer.Argument(help="its name; for recipe: a section such as training.optimizer")] = ".",
) -> None:
    """Explain the keys of one plugin's thing, or of a recipe."""
    from polyalign.errors import ConfigError
    from polyalign.plugins.registry import registry
    from polyalign.plugins.specs import plural
    from polyalign.recipe_help import explain as explained

    if name == "." and kind != "recipe":
        names = ", ".join(entry.spec.name for entry in registry().entries(plural(kind)))
        raise ConfigError(f"name which of the {plural(kind)} to explain: {names or 'none is installed'}")
    typer.echo(explained(kind, name))
