"""Weak-to-strong objectives, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

_SOURCE = "Burns et al. 2023, arXiv 2312.09390"

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="weak_xent",
        summary="Weak-to-strong: cross-entropy with a weak model's soft preferences, from strengths or ratings",
        target="polyalign.objectives.weak_labels:WeakXent",
        config="polyalign.objectives.weak_labels_config:WeakXentConfig",
        source=_SOURCE,
        needs=("reference", "edges"),
    ),
    ObjectiveSpec(
        name="weak_logconf",
        summary="Weak-to-strong with confidence: soft labels mixed with the policy's own, hardened at the labels' balance",
        target="polyalign.objectives.weak_labels:WeakLogconf",
        config="polyalign.objectives.weak_labels_config:WeakLogconfConfig",
        source=_SOURCE,
        needs=("reference", "edges"),
        scope="batch",
    ),
    ObjectiveSpec(
        name="weak_product",
        summary="Weak-to-strong: towards the product of the weak model's and the policy's own probability",
        target="polyalign.objectives.weak_labels:WeakProduct",
        config="polyalign.objectives.weak_labels_config:WeakProductConfig",
        source=f"the code of {_SOURCE}",
        needs=("reference", "edges"),
    ),
)
