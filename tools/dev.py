#!/usr/bin/env python3
"""One script for everything a developer does; standard library only, so that a bare Python 3.11 with pip is enough.

    python3 tools/dev.py demo                 align the small text-to-image model and open the report's folder
    python3 tools/dev.py test [--slow] [...]  run the tests; other arguments go to pytest
    python3 tools/dev.py check                ruff, ruff format --check, mypy
    python3 tools/dev.py install              make .venv and install the tested libraries and every member, editable
    python3 tools/dev.py proof [NAME]         show that a method learns: at most 10 minutes, numbers to docs/proofs; --smoke: 30 s
    python3 tools/dev.py bench|zoo|data NAME  run a benchmark, train a zoo model, build a data set; without NAME: list them

Every command installs first. A stamp in .venv remembers what was installed, so the second time costs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "polyalign-install.stamp"
REQUIREMENTS = ROOT / "requirements-dev.txt"
CONSTRAINTS = ROOT / "constraints.txt"
DEMO_ASSETS = ("efficientnet-lite0",)
SLOW_ASSETS = ("efficientnet-lite0", "minilm", "smollm2", "whisper-tiny.en")


class Stop(Exception):
    """The command cannot go on; the message tells the user what to do."""


def say(text: str) -> None:
    print(f"[dev] {text}", flush=True)


def run(*command: str | Path, env: dict[str, str] | None = None) -> int:
    """Run one command from the repository root, print it first, and return its exit status."""
    words = [str(word) for word in command]
    say("$ " + shlex.join(words).replace(str(ROOT) + os.sep, ""))
    return subprocess.run(words, cwd=ROOT, env={**os.environ, **(env or {})}, check=False).returncode


def must(*command: str | Path, why: str, env: dict[str, str] | None = None) -> None:
    status = run(*command, env=env)
    if status:
        raise Stop(f"{why} failed with exit status {status}; its own message is above.")


# Set-up ------------------------------------------------------------------------------------------------------------


def members() -> list[Path]:
    """Return the folders of every installable member, core first."""
    found = [path.parent for group in ("packages", "plugins") for path in sorted((ROOT / group).glob("*/pyproject.toml"))]
    return sorted(found, key=lambda path: (path.parent.name != "packages", path.name != "polyalign", path.name))


def fingerprint() -> str:
    """Return a hash of everything that decides what belongs in .venv."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}{ROOT}".encode())
    for path in (REQUIREMENTS, CONSTRAINTS, *(member / "pyproject.toml" for member in members())):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def has_pip(python: str | Path) -> bool:
    command = [str(python), "-m", "pip", "--version"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def make_venv() -> None:
    """Make .venv with a pip inside. Debian splits ensurepip off its Python, so a pip outside may have to help."""
    if PYTHON.exists() and has_pip(PYTHON):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    say(f"making .venv with Python {sys.version.split()[0]}")
    if importlib.util.find_spec("ensurepip") is not None:
        must(sys.executable, "-m", "venv", VENV, why="making the virtual environment")
    elif has_pip(sys.executable):
        must(sys.executable, "-m", "venv", "--without-pip", VENV, why="making the virtual environment")
        must(sys.executable, "-m", "pip", "--python", PYTHON, "install", "pip", why="putting pip into the virtual environment")
    else:
        raise Stop(
            "This Python has neither ensurepip nor pip, so no virtual environment can be made.\n"
            "On Debian and Ubuntu: sudo apt-get install python3-venv python3-pip; then run this command again."
        )


def install() -> None:
    """Bring .venv up to date with the requirements and members; returns at once when the stamp says that it is."""
    wanted = fingerprint()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        return
    started = time.monotonic()
    make_venv()
    STAMP.unlink(missing_ok=True)
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    # --no-compile: Python compiles the modules that are used when they are; compiling all of torch's takes a minute.
    options = ("--no-compile", "--no-input", *quiet, "--constraint", CONSTRAINTS)
    pip = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install", *options)
    say("step 1 of 2: the tested libraries (the first time: some GB, mostly torch; a few minutes)")
    must(*pip, "--requirement", REQUIREMENTS, why="installing the libraries")
    found = members()
    say(f"step 2 of 2: {len(found)} members, editable: {', '.join(member.name for member in found)}")
    editables = [argument for member in found for argument in ("--editable", str(member))]
    must(*pip, "--no-build-isolation", *editables, why="installing the members")
    STAMP.write_text(wanted)
    say(f"installed in {time.monotonic() - started:.0f} s")


# Commands ----------------------------------------------------------------------------------------------------------


def cores() -> int:
    """Return how many cores this process may really use: a container's quota counts, not the host's core count."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return count


def threads(limit: int = 64) -> dict[str, str]:
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(min(cores(), limit)))}


def install_assets(names: tuple[str, ...]) -> None:
    must(BIN / "polyalign", "assets", "install", *names, why="installing assets", env=threads())


def demo(extra: list[str]) -> int:
    install_assets(DEMO_ASSETS)
    return run(PYTHON, ROOT / "tools" / "demo.py", *extra, env=threads())


def test(slow: bool, extra: list[str]) -> int:
    if slow:
        install_assets(SLOW_ASSETS)
    # A stray plugin in the user's environment must not hide a broken one of ours: strict mode raises.
    env = {"HF_HUB_OFFLINE": "1", "POLYALIGN_STRICT_PLUGINS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Tiny models gain little from a second thread and everything from a second process.
    spread = cores() > 1 and not extra
    env |= threads(1 if spread else 4)
    marks = () if slow else ("-m", "not slow and not gpu")
    return run(PYTHON, "-m", "pytest", *marks, *(("-n", str(cores()), "--dist", "worksteal") if spread else extra), env=env)


def check() -> int:
    results = {
        "ruff": run(PYTHON, "-m", "ruff", "check"),
        "format": run(PYTHON, "-m", "ruff", "format", "--check"),
        "mypy": run(PYTHON, "-m", "mypy"),
    }
    failed = [name for name, status in results.items() if status]
    say(f"check: {', '.join(failed)} failed" if failed else "check: all passed")
    return 1 if failed else 0


def script(kind: str, folder: str, prefix: str, name: str | None, extra: list[str]) -> int:
    """Run ``tools/<folder>/<prefix><name>.py``; a name's dashes are underscores in the file name. No name: list them."""
    known = {}
    for path in sorted((ROOT / "tools" / folder).glob(f"{prefix}*.py")):
        runnable = "__main__" in path.read_text(encoding="utf-8")
        if runnable and (prefix or not path.name.startswith("train_")):
            known[path.stem.removeprefix(prefix).replace("_", "-")] = path
    if name is None:
        say(f"{kind}: {', '.join(known) or 'none'}")
        return 0
    if name not in known:
        raise Stop(f"There is no {kind} {name!r} in tools/{folder}. Known: {', '.join(known) or 'none'}.")
    install()
    return run(PYTHON, known[name], *extra, env=threads())


def main(arguments: list[str]) -> int:
    verbatim = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=verbatim, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("demo", "install", "check"):
        commands.add_parser(name, allow_abbrev=False)
    tests = commands.add_parser("test", allow_abbrev=False)
    tests.add_argument("--slow", action="store_true", help="also run the slow tests; installs the assets they need")
    for name in ("bench", "zoo", "data", "proof"):
        commands.add_parser(name, allow_abbrev=False).add_argument("name", nargs="?")
    options, extra = parser.parse_known_args(arguments)
    if options.command in ("install", "check") and extra:
        parser.error(f"{options.command} takes no arguments, got {shlex.join(extra)}")
    if options.command == "bench":
        return script("bench", "benchmarks", "", options.name, extra)
    if options.command == "proof":
        return script("proof", "proofs", "", options.name, extra)
    if options.command == "zoo":
        return script("zoo", "builders", "train_", options.name, extra)
    if options.command == "data":
        return script("data", "builders", "", options.name, extra)
    install()
    if options.command == "demo":
        return demo(extra)
    if options.command == "test":
        return test(options.slow, extra)
    return check() if options.command == "check" else 0


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  the one script that may meet an older Python
        sys.exit(f"polyalign needs Python 3.11 or newer; this is {sys.version.split()[0]} at {sys.executable}")
    try:
        sys.exit(main(sys.argv[1:]))
    except Stop as problem:
        sys.exit(f"[dev] {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
