"""The command line answers quickly: listing and explaining import no model library, and help costs little more than typer."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

QUIET = """
import contextlib, io, json, sys
from polyalign.cli.main import main
HEAVY = ("torch", "transformers", "diffusers", "accelerate", "peft", "pyarrow", "matplotlib")
found = {}
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(line.split())
    found[line] = [code, [name for name in HEAVY if name in sys.modules]]
print(json.dumps(found))
"""
LINES = [
    "--help",
    "train --help",
    "data --help",
    "assets --help",
    "list",
    "list policies",
    "list rewards --json",
    "cells --json",
    "recipes",
    "plugins",
    "config explain objective dpo",
    "config explain recipe",
    "schema",
]


def test_help_and_listing_import_no_model_library() -> None:
    printed = subprocess.run([sys.executable, "-c", QUIET, *LINES], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == {line: [0, []] for line in LINES}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, polyalign; print([n for n in ('torch', 'pydantic', 'pluggy', 'yaml') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


BARE = """
import typer, pydantic, pluggy
app = typer.Typer(add_completion=False)
@app.command()
def command(kind: str) -> None: ...
app(["policies"])
"""


@pytest.mark.parametrize("line", ["--help", "list policies"])
def test_help_and_lists_cost_little_more_than_their_libraries(line: str) -> None:
    """At most half more than a bare typer command with one parameter, for which typer 0.29 imports the greater part of pydantic.

    Processor time, the least of five runs each and taken in turn, so that a busy machine does not decide.
    """
    code = f"import sys; from polyalign.cli.main import main; sys.exit(main({line.split()!r}))"
    ours, bare = zip(*((_seconds(code), _seconds(BARE)) for _ in range(5)))
    assert min(ours) <= 1.5 * min(bare), (ours, bare)


def _seconds(code: str) -> float:
    """Return the processor seconds (user and system) of one Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
