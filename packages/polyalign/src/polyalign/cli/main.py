"""``polyalign``: every command in one place. ``--help`` must be quick, so each command imports what it uses."""

from __future__ import annotations

import importlib
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from polyalign.cli import inspection, plugins, recipes
from polyalign.errors import ConfigError, PolyalignError

app = typer.Typer(
    name="polyalign",
    help="Align generative models of any modality to preferences.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich's help costs as much as everything else together
    pretty_exceptions_enable=False,
)

# Sub commands with their own imports, loaded when they are called: name -> (module with a typer `app`, help line).
LAZY = {
    "data": ("polyalign.cli.data", "Validate, count, convert and look at preference data."),
    "assets": ("polyalign.cli.assets", "List and install the pinned models and data that recipes name."),
}

RecipeOrRun = Annotated[str, typer.Argument(metavar="RUN_OR_RECIPE", help="a run folder, a recipe name or a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="changes to the recipe")]


class Rank(StrEnum):
    all = "all"
    extremes = "extremes"


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show the traceback of an error")] = False,
) -> None:
    pass  # `main` reads --verbose itself, since it is needed after the command has failed


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a recipe name, a YAML file or a run folder")],
    overrides: Overrides = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="stop after so many steps, instead of training.steps")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in the run folder")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what the run would do, and stop")] = False,
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/<recipe name>")] = None,
) -> None:
    """Train a recipe."""
    from polyalign import launch

    if dry_run:
        from polyalign.config import load_recipe
        from polyalign.training import run

        typer.echo(run.dry_run(load_recipe(recipe, overrides or [])))
        return
    finished = launch.start(recipe, overrides or [], out, resume, max_steps)
    typer.echo(f"done: {finished.folder} (report: {finished.folder / 'report.html'})")


@app.command()
def teach(
    recipe: Annotated[str, typer.Argument(help="a recipe name, a YAML file or a run folder")],
    overrides: Overrides = None,
) -> None:
    """Let a recipe's teacher read its data once, for training without the teacher."""
    from polyalign.config import load_recipe
    from polyalign.training import run

    typer.echo(run.teach(load_recipe(recipe, overrides or [])))


@app.command()
def sample(
    source: RecipeOrRun,
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="a text prompt, repeatable; default: the held-out prompts")] = None,
    media: Annotated[list[Path] | None, typer.Option(help="a file that stands in front of every --prompt, repeatable")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="samples per prompt")] = 1,
    seed: Annotated[int, typer.Option(help="the same seed gives the same samples")] = 0,
    out: Annotated[Path | None, typer.Option(help="where samples are written; default: samples/ in the run folder")] = None,
    records: Annotated[
        Path | None, typer.Option(help="write the recipe's training records there (.jsonl) with the samples as candidates")
    ] = None,
    prefix: Annotated[
        list[str] | None, typer.Option(help="with --records: said before the prompt, not recorded; repeatable, in turns")
    ] = None,
) -> None:
    """Generate from a run's model, or a recipe's base model."""
    from polyalign.config import load_recipe
    from polyalign.evaluation import run

    resolved = load_recipe(source, overrides or [])
    asked = run.prompts_of(prompt or [], media or [])
    if records is not None:
        typer.echo(
            run.sample_records(
                resolved, _run_folder(source), records, prompts=asked, count=number, seed=seed, prefixes=prefix or []
            )
        )
        return
    typer.echo(run.sample(resolved, _run_folder(source), prompts=asked, samples_per_prompt=number, seed=seed, out=out))


@app.command()
def score(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_RECIPE_OR_REWARD", help="a run, a recipe, or with --data a reward's name too")
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="write every score there, as JSON lines; with --data: rated records")] = None,
    data: Annotated[str | None, typer.Option(help="rate the candidates of these records by rewards, into --out")] = None,
    split: Annotated[str | None, typer.Option(help="with --data: the split to rate")] = None,
    rank: Annotated[Rank | None, typer.Option(help="with --data: also write the order as comparisons")] = None,
    parts: Annotated[bool, typer.Option("--parts", help="with --data: also rate by the parts of combined rewards")] = False,
) -> None:
    """Score held-out responses: is the better one preferred? Or rate and rank any records by rewards (--data)."""
    if data is not None:
        from polyalign.cli.rating import score_data

        typer.echo(score_data(source, overrides or [], data, out, split, rank.value if rank else None, parts))
        return
    if split or rank or parts:
        raise ConfigError("--split, --rank and --parts go with --data")
    from polyalign.config import load_recipe
    from polyalign.evaluation import run

    typer.echo(run.score(load_recipe(source, overrides or []), _run_folder(source), out=out))


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="a new folder for the whole model")],
) -> None:
    """Write a run's model with its adapters merged into the weights."""
    from polyalign.config import load_recipe
    from polyalign.evaluation import run as evaluation

    typer.echo(evaluation.merge(load_recipe(str(run), []), run, target))


@app.command(name="eval")
def evaluate(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_RECIPE_OR_EVALUATOR", help="a run, a recipe, or with --data an evaluator's name")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="where the report is written; default: the run folder; with --data: a JSON file")
    ] = None,
    data: Annotated[str | None, typer.Option(help="judge the candidates of these records, producer by producer")] = None,
    split: Annotated[str | None, typer.Option(help="with --data: the split to judge")] = None,
) -> None:
    """Judge what a run's model makes, by rewards and evaluators. Or any records by an evaluator (--data)."""
    if data is not None:
        from polyalign.cli.rating import eval_data

        typer.echo(eval_data(source, overrides or [], data, out, split))
        return
    if split:
        raise ConfigError("--split goes with --data")
    from polyalign.config import load_recipe
    from polyalign.evaluation import run

    typer.echo(run.eval(load_recipe(source, overrides or []), _run_folder(source), out=out))


@app.command()
def synthesize(
    recipe: Annotated[str, typer.Argument(help="a YAML file: data, and a synthesizer (`polyalign list synthesizers`)")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the new .jsonl file; default: synthesized/<name>/train.jsonl")] = None,
) -> None:
    """Make new records of given ones: critique and refinement, say. Killed, it goes on where it was."""
    from polyalign.config import load_config
    from polyalign.synthesis.config import SynthesisRecipe

    read = load_config(SynthesisRecipe, recipe, overrides or [])
    from polyalign.synthesis import run  # only now: torch takes a while to import

    target = out or Path("synthesized") / read.name.replace("/", "-") / "train.jsonl"
    typer.echo(run.summary(*run.synthesize(read, target), target))


def _run_folder(source: str) -> Path | None:
    return Path(source) if Path(source).is_dir() else None


recipes.add_to(app)
inspection.add_to(app)
app.add_typer(plugins.app, name="plugins")


class LazyGroup(TyperGroup):
    """A sub command whose module is imported only when it is called; its help line is known before."""

    def __init__(self, name: str, module: str, help_line: str) -> None:
        super().__init__(name=name, help=help_line)
        self.module = module

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        group = typer.main.get_group(importlib.import_module(self.module).app)
        return group.make_context(info_name, args, parent, **extra)


def command() -> TyperGroup:
    """Return the whole command tree."""
    group = typer.main.get_group(app)
    for name, (module, help_line) in LAZY.items():
        group.add_command(LazyGroup(name, module, help_line), name)
    return group


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for a mistake the user can mend, printed without traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command().main(args=list(arguments), prog_name="polyalign")
    except SystemExit as stop:  # how typer ends, also after success
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except PolyalignError as error:
        if _verbose(arguments):
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        return 2
    return 0


def _verbose(arguments: list[str]) -> bool:
    """``-v`` counts before the command's name only, where `_root` takes it."""
    leading = arguments[: next((i for i, text in enumerate(arguments) if not text.startswith("-")), len(arguments))]
    return any(text in ("-v", "--verbose") for text in leading)
