"""Distillation from a teacher's stored distributions, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="gkd",
        summary="Generalised knowledge distillation: forward, reverse or Jensen-Shannon divergence to a teacher, token by token",
        target="polyalign.objectives.distillation:GKD",
        config="polyalign.objectives.distillation_config:GKDConfig",
        source="Agarwal et al. 2023, arXiv 2306.13649, eq. 1",
        needs=("token_targets",),
        view="sft",
    ),
    ObjectiveSpec(
        name="dckd",
        summary="Dual-constrained distillation: a preference-tuned teacher's distributions on better and worse responses alike",
        target="polyalign.objectives.distillation:DCKD",
        config="polyalign.objectives.distillation_config:DCKDConfig",
        source="Gao et al. 2025, arXiv 2502.17927",
        needs=("token_targets", "edges"),
    ),
    ObjectiveSpec(
        name="adpa",
        summary="Advantage-guided distillation: a tuned teacher's advantage over its former self, on the student's own responses",
        target="polyalign.objectives.distillation:ADPA",
        config="polyalign.objectives.distillation_config:ADPAConfig",
        source="Gao et al. 2025, arXiv 2502.17927",
        needs=("token_targets", "self_samples"),
        view="sft",
    ),
)
