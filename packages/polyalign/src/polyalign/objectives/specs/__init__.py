"""The built-in objectives, declared: one module per family. Light: no torch here."""

from __future__ import annotations

from polyalign.objectives.specs import (
    denoising,
    distillation,
    listwise,
    offline,
    online,
    online_denoising,
    refinements,
    reward_models,
    unpaired,
    weak_labels,
)
from polyalign.plugins.specs import ObjectiveSpec

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    *offline.OBJECTIVES,
    *refinements.OBJECTIVES,
    *denoising.OBJECTIVES,
    *online.OBJECTIVES,
    *online_denoising.OBJECTIVES,
    *distillation.OBJECTIVES,
    *listwise.OBJECTIVES,
    *unpaired.OBJECTIVES,
    *weak_labels.OBJECTIVES,
    *reward_models.OBJECTIVES,
)
