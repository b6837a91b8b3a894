"""The hooks a plugin may implement: each takes nothing and returns light specs. This page is the whole plugin interface."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from polyalign.plugins.specs import (
    DatasetSpec,
    EncoderSpec,
    EvaluatorSpec,
    ImporterSpec,
    ModalitySpec,
    ModelSpec,
    ObjectiveSpec,
    PolicySpec,
    RecipeSpec,
    RewardSpec,
    SynthesizerSpec,
)

PROJECT = "polyalign"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def polyalign_modalities() -> Iterable[ModalitySpec]:  # type: ignore[empty-body]
    """Return kinds of media: how each is recognised, decoded, checked and shown."""


@hookspec
def polyalign_policies() -> Iterable[PolicySpec]:  # type: ignore[empty-body]
    """Return adapters of models that can be aligned."""


@hookspec
def polyalign_encoders() -> Iterable[EncoderSpec]:  # type: ignore[empty-body]
    """Return models that turn media or text into embeddings."""


@hookspec
def polyalign_rewards() -> Iterable[RewardSpec]:  # type: ignore[empty-body]
    """Return functions from (prompt, response) to one number; higher is better."""


@hookspec
def polyalign_objectives() -> Iterable[ObjectiveSpec]:  # type: ignore[empty-body]
    """Return losses over scores and feedback."""


@hookspec
def polyalign_importers() -> Iterable[ImporterSpec]:  # type: ignore[empty-body]
    """Return readers of foreign data sets, for ``polyalign data import NAME``."""


@hookspec
def polyalign_evaluators() -> Iterable[EvaluatorSpec]:  # type: ignore[empty-body]
    """Return judges of generated responses, used after training and never as its signal."""


@hookspec
def polyalign_synthesizers() -> Iterable[SynthesizerSpec]:  # type: ignore[empty-body]
    """Return makers of new records, for ``polyalign synthesize``: critique and refinement, rankings by judges ..."""


@hookspec
def polyalign_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Return shipped recipes: YAML files that ``polyalign train NAME`` runs."""


@hookspec
def polyalign_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Return shipped data sets, named in recipes as ``dataset:NAME``."""


@hookspec
def polyalign_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Return shipped weights, named in recipes as ``zoo:NAME``."""
