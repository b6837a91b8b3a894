"""Core's own plugin: it uses the hooks that everybody uses."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import ImporterSpec, ObjectiveSpec, RewardSpec


@hookimpl
def polyalign_objectives() -> Iterable[ObjectiveSpec]:
    from polyalign.objectives.specs import OBJECTIVES

    return OBJECTIVES


@hookimpl
def polyalign_rewards() -> Iterable[RewardSpec]:
    from polyalign.rewards.specs import REWARDS

    return REWARDS


@hookimpl
def polyalign_importers() -> Iterable[ImporterSpec]:
    from polyalign.records.importing.specs import IMPORTERS

    return IMPORTERS
