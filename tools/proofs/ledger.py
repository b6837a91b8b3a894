"""Where a proof's numbers go: printed, and written to ``docs/proofs/NAME.json`` with a hash of the sources that gave them."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def options(description: str | None) -> argparse.Namespace:
    """Read the options that every proof has: ``--smoke`` runs it for seconds and writes nothing."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that everything still runs; nothing is written")
    return parser.parse_args()


def over_time(rows: Iterable[Mapping[str, Any]], name: str = "reward") -> list[dict[str, Any]]:
    """Return (step, reward) of the rows of a run's metrics that have ``name``."""
    return [{"step": row["step"], "reward": round(row[name], 4)} for row in rows if name in row]


def source_hash() -> str:
    """Return a hash of every Python and YAML file of the packages and plugins, and of the proofs themselves."""
    digest = hashlib.sha256()
    folders = [*sorted(ROOT.glob("packages/*/src")), *sorted(ROOT.glob("plugins/*/src")), ROOT / "tools" / "proofs"]
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


class Proof:
    """One claim being tried. ``claim`` is what `settle` decides, in a sentence."""

    def __init__(self, name: str, claim: str, smoke: bool) -> None:
        self.name, self.claim, self.smoke, self.began = name, claim, smoke, time.monotonic()

    def settle(self, holds: bool, **numbers: Any) -> None:
        """Print the numbers and, but for a smoke run, write them; exit with 1 if the claim does not hold."""
        found = {
            "proof": self.name,
            "claim": self.claim,
            "holds": holds,
            **numbers,
            "seconds": round(time.monotonic() - self.began),
            "source": source_hash(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
        print(json.dumps(found, indent=1))
        if self.smoke:
            print("smoke run: everything runs; nothing is claimed or written")
            return
        folder = ROOT / "docs" / "proofs"
        folder.mkdir(exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(found, indent=1) + "\n")
        if not holds:
            sys.exit(f"the claim does not hold: {self.claim}")
