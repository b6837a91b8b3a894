"""Distributions made on the spot: metadata, one entry point, one module, in a folder that looks like site-packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from textwrap import dedent

CORE_RANGE = "polyalign>=0.1,<0.2"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: {requires}\n"
HOOK = "from polyalign.plugins.hookspecs import hookimpl\nfrom polyalign.plugins.specs import RewardSpec\n\n"
GOOD = """
@hookimpl
def polyalign_rewards():
    return [RewardSpec(name={name!r}, summary="a reward", target="json:loads")]
"""
RAISING = """
@hookimpl
def polyalign_rewards():
    raise RuntimeError("the reward shop is closed")
"""
UNKNOWN_HOOK = """
@hookimpl
def polyalign_reward():
    return []
"""


class Site:
    """A folder of small distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def add(self, distribution: str, entry: str, source: str, requires: str = CORE_RANGE) -> None:
        """Add a distribution whose plugin module has this source (the usual imports are put in front)."""
        module = f"{distribution.replace('-', '_')}_module"
        (self.folder / f"{module}.py").write_text(HOOK + dedent(source))
        metadata = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(METADATA.format(name=distribution, requires=requires))
        (metadata / "entry_points.txt").write_text(f"[polyalign]\n{entry} = {module}\n")
        self.modules.append(module)

    def add_good(self, distribution: str, entry: str, reward: str, requires: str = CORE_RANGE) -> None:
        """Add a distribution that offers one reward."""
        self.add(distribution, entry, GOOD.format(name=reward), requires)

    def entries(self) -> list[EntryPoint]:
        found = [point for dist in distributions(path=[str(self.folder)]) for point in dist.entry_points]
        return [point for point in found if point.group == "polyalign"]
