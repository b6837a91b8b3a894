"""``polyalign list``, ``cells`` and ``doctor``: what is installed, what it can do, and whether it is well."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from polyalign.cli.tables import table


def add_to(app: typer.Typer) -> None:
    app.command(name="list")(list_kind)
    app.command()(cells)
    app.command()(doctor)


def list_kind(
    kind: Annotated[str | None, typer.Argument(help="policies, objectives, rewards ...; none: count each kind")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """List what the installed plugins offer."""
    from polyalign.plugins.registry import registry
    from polyalign.plugins.specs import KINDS

    if kind is not None:
        listing(kind, as_json)
        return
    counts = {name: len(registry().entries(name)) for name in KINDS}
    typer.echo(json.dumps(counts) if as_json else table([(name, str(n)) for name, n in counts.items()], ("kind", "installed")))


def listing(kind: str, as_json: bool) -> None:
    """Print every entry of one kind."""
    from polyalign.plugins.registry import registry
    from polyalign.plugins.specs import plural

    entries = registry().entries(plural(kind))
    if as_json:
        typer.echo(
            json.dumps([{**asdict(e.spec), "distribution": e.distribution, "plugin": e.plugin} for e in entries], indent=1)
        )
    elif entries:
        rows = [(e.spec.name, e.distribution, *_details(e.spec)) for e in entries]
        typer.echo(table(rows, ("name", "from", "summary", "details")))
    else:
        typer.echo(f"no {plural(kind)} are installed")


def _details(spec: Any) -> tuple[str, str]:
    """Return the summary, and what else matters to somebody who chooses: source, family and media, or licence."""
    if hasattr(spec, "source"):
        return spec.summary, spec.source
    if hasattr(spec, "family"):
        return spec.summary, f"{spec.family}: {'+'.join(spec.inputs) or '-'} -> {'+'.join(spec.outputs) or '-'}"
    return spec.summary, getattr(spec, "licence", "") or ", ".join(getattr(spec, "inputs", ()) or getattr(spec, "mimes", ()))


def cells(
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Show which objective can train which policy, or why not."""
    from polyalign import cells as matrix

    found = matrix.cells()
    if as_json:
        typer.echo(json.dumps([asdict(cell) for cell in found], indent=1))
        return
    rows = [(c.policy, c.family, c.modality, c.objective, "yes" if c.supported else f"no: {c.reason}") for c in found]
    typer.echo(table(rows, ("policy", "family", "modality", "objective", "supported")))
    typer.echo(f"{sum(cell.supported for cell in found)} of {len(found)} cells are supported")


def doctor() -> None:
    """Check versions, devices and plugins; exit code 1 if unwell."""
    from polyalign.plugins.registry import registry

    problems = 0
    for name, text, good in [*_versions(), *_devices()]:
        problems += not good
        typer.echo(f"{'ok ' if good else 'BAD'}  {name}: {text}")
    for plugin in registry().plugins:
        typer.echo(f"ok   plugin {plugin.name}: {plugin.distribution} {plugin.version}")
    for name in registry().blocked:
        typer.echo(f"ok   plugin {name}: blocked by POLYALIGN_BLOCK_PLUGINS")
    for failure in registry().failures:
        problems += 1
        typer.echo(f"BAD  {failure.line()}")
    typer.echo("all is well" if not problems else f"{problems} problem{'s' if problems > 1 else ''}; see the lines marked BAD")
    raise typer.Exit(int(problems > 0))


def _versions() -> list[tuple[str, str, bool]]:
    """Check every requirement that core declares against what is installed."""
    import platform
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    found = [("python", platform.python_version(), True)]
    for text in requires("polyalign") or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate():
            continue
        try:
            have = version(need.name)
        except PackageNotFoundError:
            found.append((need.name, f"missing; pip install '{need.name}{need.specifier}'", False))
            continue
        good = need.specifier.contains(have, prereleases=True)
        found.append((need.name, have if good else f"{have}, but polyalign needs {need.specifier}", good))
    return found


def _devices() -> list[tuple[str, str, bool]]:
    import os
    import shutil

    try:
        import torch
    except ImportError as error:
        return [("devices", f"torch cannot be imported: {error}", False)]
    found: list[tuple[str, Any]] = [("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if torch.backends.mps.is_available():
        found.append(("mps", "available"))
    found.append(("free disk here", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"))
    return [(name, text, True) for name, text in found]
