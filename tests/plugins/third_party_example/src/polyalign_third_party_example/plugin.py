"""What this distribution adds to polyalign. Light: importing it costs milliseconds."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import DatasetSpec, ModalitySpec, ObjectiveSpec, PolicySpec, RecipeSpec, RewardSpec

HERE = "polyalign_third_party_example"


@hookimpl
def polyalign_modalities() -> Iterable[ModalitySpec]:
    return [
        ModalitySpec(
            name="walk",
            summary="a list of numbers, stored as JSON",
            target=f"{HERE}.modality:Walk",
            mimes=("application/x-walk+json",),
        )
    ]


@hookimpl
def polyalign_policies() -> Iterable[PolicySpec]:
    return [
        PolicySpec(
            name="walker",
            summary="a Gaussian over each step of a walk, given a prompt",
            target=f"{HERE}.policy:build",
            config=f"{HERE}.config:WalkerConfig",
            requires=("torch",),
            family="continuous",
            inputs=("text",),
            outputs=("walk",),
            provides=("log_probs",),
            fixture=f"{HERE}.fixture:fixture",
        )
    ]


@hookimpl
def polyalign_objectives() -> Iterable[ObjectiveSpec]:
    return [
        ObjectiveSpec(
            name="exponential",
            summary="exponential loss on the preference margin: wrong pairs count far more than in DPO",
            target=f"{HERE}.objective:Exponential",
            config=f"{HERE}.config:ExponentialConfig",
            source="the exponential loss of AdaBoost (Freund and Schapire 1997) on the margin of DPO",
            needs=("reference", "edges"),
        )
    ]


@hookimpl
def polyalign_rewards() -> Iterable[RewardSpec]:
    return [
        RewardSpec(
            name="follows_prompt",
            summary="share of steps that go the way the prompt asks, up or down",
            target=f"{HERE}.reward:FollowsPrompt",
            inputs=("text", "walk"),
        )
    ]


@hookimpl
def polyalign_recipes() -> Iterable[RecipeSpec]:
    return [
        RecipeSpec(
            name="walks/exponential",
            summary="teach the walker to go the way the prompt asks, in seconds",
            target=f"{HERE}:recipes/exponential.yaml",
        )
    ]


@hookimpl
def polyalign_datasets() -> Iterable[DatasetSpec]:
    return [
        DatasetSpec(
            name="walks",
            summary="sixteen prompts, each with a walk that follows it and one that does not",
            target=f"{HERE}.data:folder",
            licence="CC0-1.0",
        )
    ]
