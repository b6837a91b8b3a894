"""Run in a fresh interpreter that sees one plugin's wheel, the core's, and what the two declare: prints what works, as JSON.

Arguments: the plugin's entry name. Nothing here may be imported by the tests themselves.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def scored(spec: Any) -> bool:
    """Build a policy's first fixture and score two of its samples; return whether the scores are finite."""
    import torch

    from polyalign.policies.fixture import fixtures_of
    from polyalign.records.views import VIEWS

    fixture = fixtures_of(spec)[0]
    samples = [
        sample
        for record in fixture.records
        for example in VIEWS["pairs"](record, fixture.media) or VIEWS["sft"](record, fixture.media)
        for sample in example.samples
    ]
    policy = fixture.build()
    policy.prepare(samples[:2], fixture_cache())
    scores = policy(policy.collate(samples[:2]), frozenset(policy.provides) & {"hidden"})
    return bool(torch.isfinite(scores.log_probs[scores.mask]).all())


def fixture_cache() -> Any:
    from polyalign.cache import cache_folder

    return cache_folder() / "features"


def main(plugin: str) -> dict[str, Any]:
    from polyalign.cells import cells
    from polyalign.config import load_recipe
    from polyalign.plugins.registry import registry

    known = registry()
    mine = next(one for one in known.plugins if one.name == plugin).specs
    found: dict[str, Any] = {"plugins": [one.name for one in known.plugins], "failures": [one.line() for one in known.failures]}
    offered = [(kind, spec) for kind, specs in mine.items() for spec in specs if kind != "recipes"]
    found["targets"] = {f"{kind} {spec.name}": callable(spec.load()) for kind, spec in offered}
    found["recipes"] = {spec.name: load_recipe(spec.name).recipe.name for spec in mine.get("recipes", ())}
    found["folders"] = {spec.name: spec.load()().is_dir() for kind in ("datasets", "models") for spec in mine.get(kind, ())}
    policies = mine.get("policies", ())
    found["cells"] = sum(cell.supported for cell in cells() if cell.policy in {spec.name for spec in policies})
    found["scored"] = {spec.name: scored(spec) for spec in policies if spec.fixture}
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
