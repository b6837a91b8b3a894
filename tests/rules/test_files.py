"""Files a newcomer can find, read in one sitting, and use on another machine."""

from __future__ import annotations

import re
from pathlib import Path

from .conftest import MEMBERS, committed

LONGEST = 450  # lines
TOO_BIG = 20 * 2**20  # bytes
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "stuff"}
# Assembled from pieces, or this very file would break the rule.
MACHINE = re.compile(r"(?<![\w.~}])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "tm" + "p", "home/[a-z]", "opt/wheels")) + r")/\w")
HOSTS = ("pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org", "deb.debian" + ".org")


def readable(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def test_no_file_hides_what_is_in_it_behind_a_vague_name() -> None:
    assert not [str(path) for path in committed() if path.suffix == ".py" and path.stem.lower() in VAGUE]


def test_python_files_are_short_enough_to_read() -> None:
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in committed() if path.suffix == ".py"}
    assert not {path: length for path, length in lengths.items() if length > LONGEST}


def test_no_committed_text_knows_this_machine_or_a_registry(repository: Path) -> None:
    found = []
    for path in committed():
        if path.stat().st_size > 2**20 or (text := readable(path)) is None:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE.search(line) or any(host in line for host in HOSTS):
                found.append(f"{path.relative_to(repository)}:{number}: {line.strip()[:120]}")
    assert not found


def test_no_committed_file_is_huge(repository: Path) -> None:
    assert not [str(path.relative_to(repository)) for path in committed() if path.stat().st_size > TOO_BIG]


def test_links_between_pages_lead_somewhere(repository: Path) -> None:
    broken = []
    for page in (path for path in committed() if path.suffix == ".md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(repository)}: {target}")
    assert not broken


def test_every_shipped_folder_carries_a_card(repository: Path) -> None:
    """A data set or model without licence and source is one that nobody may use."""
    models = [folder for member in MEMBERS for folder in member.package.glob("models/*") if folder.is_dir()]
    for folder in [*models, *(path for path in (repository / "datasets").glob("*") if path.is_dir())]:
        cards = [folder / name for name in ("README.md", "CARD.md") if (folder / name).is_file()]
        assert cards and "licen" in cards[0].read_text(encoding="utf-8").lower(), folder.name
