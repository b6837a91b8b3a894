"""The built-in objectives, declared: one module per family. Light: no torch here."""

from __future__ import annotations

from polyalign.objectives.specs import listwise, offline
from polyalign.plugins.specs import ObjectiveSpec

OBJECTIVES: tuple[ObjectiveSpec, ...] = (*offline.OBJECTIVES, *listwise.OBJECTIVES)
