"""Objectives on rankings of any length, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="plackett_luce",
        summary="DPO on whole rankings with ties: each response against all that are not better",
        target="polyalign.objectives.listwise:PlackettLuce",
        config="polyalign.objectives.listwise_config:PlackettLuceConfig",
        source="Rafailov et al. 2023, arXiv 2305.18290, appendix A.3, eq. 20",
        needs=("reference", "rankings"),
        view="rankings",
    ),
    ObjectiveSpec(
        name="pro",
        summary="Preference Ranking Optimization: each response against the worse ones, by rating; no reference",
        target="polyalign.objectives.listwise:PRO",
        config="polyalign.objectives.listwise_config:PROConfig",
        source="Song et al. 2023, arXiv 2306.17492",
        needs=("rankings",),
        view="rankings",
    ),
)
