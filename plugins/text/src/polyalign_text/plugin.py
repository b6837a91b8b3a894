"""What this distribution adds to polyalign. Light: importing it costs milliseconds."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import DatasetSpec, PolicySpec, RecipeSpec, RewardSpec


@hookimpl
def polyalign_policies() -> Iterable[PolicySpec]:
    return [
        PolicySpec(
            name="text",
            summary="any transformers causal language model, in full or by LoRA",
            target="polyalign_text.policy:build",
            config="polyalign_text.config:TextConfig",
            requires=("torch", "transformers", "peft"),
            family="tokens",
            inputs=("text",),
            outputs=("text",),
            provides=("log_probs", "entropy", "mean_logit", "hidden", "token_targets"),
            fixture="polyalign_text.fixture:fixture",
        )
    ]


@hookimpl
def polyalign_rewards() -> Iterable[RewardSpec]:
    return [
        RewardSpec(
            name="constraints",
            summary="share of the prompt's checkable instructions (lengths, words, case, bullets, JSON) that the answer keeps",
            target="polyalign_text.constraints:ConstraintsReward",
            config="polyalign_text.config:ConstraintsConfig",
            inputs=("text",),
        )
    ]


@hookimpl
def polyalign_recipes() -> Iterable[RecipeSpec]:
    return [
        RecipeSpec(
            name="text/dpo-smollm2",
            summary="DPO on rule-checked instructions with the real SmolLM2-135M, LoRA, on a laptop CPU",
            target="polyalign_text:recipes/dpo-smollm2.yaml",
        )
    ]


@hookimpl
def polyalign_datasets() -> Iterable[DatasetSpec]:
    return [
        DatasetSpec(
            name="text-constraints",
            summary="instructions a rule can check, each with one answer that keeps them and one that breaks one",
            target="polyalign_text.shipped:text_constraints",
            licence="Apache-2.0",
        )
    ]
