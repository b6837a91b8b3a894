"""Core's own plugin: it uses the hooks that everybody uses."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import (
    EncoderSpec,
    EvaluatorSpec,
    ImporterSpec,
    ObjectiveSpec,
    PolicySpec,
    RewardSpec,
    SynthesizerSpec,
)


@hookimpl
def polyalign_objectives() -> Iterable[ObjectiveSpec]:
    from polyalign.objectives.specs import OBJECTIVES

    return OBJECTIVES


@hookimpl
def polyalign_policies() -> Iterable[PolicySpec]:
    return (
        PolicySpec(
            name="encoder-features",
            summary="No model that generates: features of a frozen encoder, for reward models to put a head on",
            target="polyalign.policies.encoder_features:build",
            config="polyalign.policies.encoder_features_config:EncoderFeaturesConfig",
            requires=("torch",),
            family="features",
            inputs=("text", "image", "audio", "video"),
            provides=("hidden", "prompt_hidden"),
            fixture="polyalign.policies.encoder_features_fixture:fixture",
        ),
    )


@hookimpl
def polyalign_encoders() -> Iterable[EncoderSpec]:
    return (
        EncoderSpec(
            name="hashed-words",
            summary="Counts of words and pairs of words, hashed into a fixed number of columns; needs no weights",
            target="polyalign.policies.hashed_words:HashedWords",
            config="polyalign.policies.encoder_features_config:HashedWordsConfig",
            inputs=("text",),
        ),
    )


@hookimpl
def polyalign_rewards() -> Iterable[RewardSpec]:
    from polyalign.rewards.specs import REWARDS

    return REWARDS


@hookimpl
def polyalign_importers() -> Iterable[ImporterSpec]:
    from polyalign.records.importing.specs import IMPORTERS

    return IMPORTERS


@hookimpl
def polyalign_evaluators() -> Iterable[EvaluatorSpec]:
    return (
        EvaluatorSpec(
            name="amu",
            summary="eval-anything, understanding: answers rated 1 to 10 against references, the mean of category means",
            target="polyalign.evaluation.eval_anything.understanding:AMU",
            config="polyalign.evaluation.eval_anything.config:AMUConfig",
            inputs=("text", "image", "audio", "video"),
        ),
        EvaluatorSpec(
            name="amg",
            summary="eval-anything, generation: instruction following x modality selection x synergy",
            target="polyalign.evaluation.eval_anything.generation:AMG",
            config="polyalign.evaluation.eval_anything.config:AMGConfig",
            inputs=("text", "image", "audio", "video"),
        ),
    )


@hookimpl
def polyalign_synthesizers() -> Iterable[SynthesizerSpec]:
    return (
        SynthesizerSpec(
            name="language-feedback",
            summary="Responses are criticised in words and refined by that; what got better becomes pairs",
            target="polyalign.synthesis.language_feedback:LanguageFeedback",
            config="polyalign.synthesis.config:LanguageFeedbackConfig",
            source="Align-Anything (arXiv 2412.15838), learning from language feedback",
        ),
        SynthesizerSpec(
            name="critique-examples",
            summary="Critiques in records become examples that a critic is trained on, by the sft objective",
            target="polyalign.synthesis.critique_examples:CritiqueExamples",
            config="polyalign.synthesis.config:CritiqueExamplesConfig",
            source="Align-Anything (arXiv 2412.15838), feedback modelling",
        ),
    )
