"""Objectives on single, labelled responses and on a policy's own samples, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="apo_zero_unpaired",
        summary="Anchored Preference Optimization without pairs: good responses up, bad ones down, each against the reference",
        target="polyalign.objectives.unpaired:APOZeroUnpaired",
        config="polyalign.objectives.unpaired_config:APOZeroUnpairedConfig",
        source="after D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7",
        needs=("reference", "labels"),
        view="unpaired",
    ),
    ObjectiveSpec(
        name="unlikelihood",
        summary="Unlikelihood training: -log(1 - p) of every decision of bad responses; nothing else is needed",
        target="polyalign.objectives.unpaired:Unlikelihood",
        config="polyalign.objectives.unpaired_config:UnlikelihoodConfig",
        source="Welleck et al. 2019, arXiv 1908.04319, eq. 5",
        needs=("labels",),
        view="unpaired",
        unsupported={"continuous": "a density of continuous actions can exceed 1 and then has no 1 - p; use apo_zero_unpaired"},
    ),
    ObjectiveSpec(
        name="d2o",
        summary="Distributional Dispreference Optimization: a bad response against the policy's own answers, taken together",
        target="polyalign.objectives.d2o:D2O",
        config="polyalign.objectives.d2o_config:D2OConfig",
        source="Duan et al. 2024, arXiv 2403.03419",
        needs=("reference", "edges"),
        scope="group",
        view="self_samples",
    ),
)
