"""``polyalign plugins list`` and ``plugins check``: who offers what, who was left out and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from polyalign.cli.tables import table

if TYPE_CHECKING:
    from polyalign.plugins.loader import Plugin

app = typer.Typer(help="List plugins, with what failed and why; check one.", invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def _default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_plugins()


@app.command(name="list")
def list_plugins(
    traces: Annotated[bool, typer.Option("--traceback", help="show the traceback of each failure")] = False,
) -> None:
    """List plugins, with what failed and why."""
    from polyalign.plugins.registry import registry

    known = registry()
    rows = [(plugin.name, f"{plugin.distribution} {plugin.version}", _offers(plugin)) for plugin in known.plugins]
    typer.echo(table(rows, ("plugin", "from", "offers")))
    for name in known.blocked:
        typer.echo(f"blocked: {name}")
    for failure in known.failures:
        typer.echo(f"failed: {failure.line()}")
        if traces and failure.traceback:
            typer.echo(failure.traceback)


def _offers(plugin: Plugin) -> str:
    return ", ".join(f"{len(specs)} {kind}" for kind, specs in plugin.specs.items()) or "nothing"


@app.command()
def check(name: Annotated[str, typer.Argument(help="the plugin's entry name")]) -> None:
    """Load everything a plugin offers; exit code 1 if something does not work."""
    from polyalign.plugins.check import check_plugin

    report = check_plugin(name)
    for line in report.passed:
        typer.echo(f"ok   {line}")
    for line in report.problems:
        typer.echo(f"BAD  {line}")
    typer.echo(f"{len(report.passed)} passed, {len(report.problems)} failed")
    raise typer.Exit(int(bool(report.problems)))
