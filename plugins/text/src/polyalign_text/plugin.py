"""What this distribution adds to polyalign. Light: importing it costs milliseconds."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import TOKEN_POLICY_PROVIDES, DatasetSpec, PolicySpec, RecipeSpec


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
            provides=TOKEN_POLICY_PROVIDES,
            switches={"values": "value_head"},
            fixture="polyalign_text.fixture:fixture",
        ),
        PolicySpec(
            name="control-adapters",
            summary="a causal language model with a soft prompt per kind of behaviour, good or bad: MEET",
            target="polyalign_text.control_adapters:build",
            config="polyalign_text.config:ControlAdaptersConfig",
            requires=("torch", "transformers", "peft"),
            family="tokens",
            inputs=("text",),
            outputs=("text",),
            provides=TOKEN_POLICY_PROVIDES,
            fixture="polyalign_text.fixture:control_fixture",
        ),
    ]


@hookimpl
def polyalign_recipes() -> Iterable[RecipeSpec]:
    return [
        RecipeSpec(
            name="text/dpo-smollm2",
            summary="DPO on rule-checked instructions with the real SmolLM2-135M, LoRA, on a laptop CPU",
            target="polyalign_text:recipes/dpo-smollm2.yaml",
        ),
        RecipeSpec(
            name="text/grpo-smollm2",
            summary="GRPO on instructions that a rule checks, with the real SmolLM2-135M, LoRA",
            target="polyalign_text:recipes/grpo-smollm2.yaml",
        ),
        RecipeSpec(
            name="text/best-of-n-smollm2",
            summary="best of n on instructions that a rule checks, with the real SmolLM2-135M, LoRA",
            target="polyalign_text:recipes/best-of-n-smollm2.yaml",
        ),
        RecipeSpec(
            name="text/iterative-dpo-smollm2",
            summary="iterative DPO on instructions that a rule checks, with the real SmolLM2-135M, LoRA",
            target="polyalign_text:recipes/iterative-dpo-smollm2.yaml",
        ),
        RecipeSpec(
            name="text/rloo-smollm2",
            summary="RLOO on instructions that a rule checks, with the real SmolLM2-135M, LoRA",
            target="polyalign_text:recipes/rloo-smollm2.yaml",
        ),
        RecipeSpec(
            name="text/ppo-max-smollm2",
            summary="PPO-max on instructions that a rule checks, with the real SmolLM2-135M, LoRA and a value head",
            target="polyalign_text:recipes/ppo-max-smollm2.yaml",
        ),
        RecipeSpec(
            name="text/meet-modules",
            summary="MEET's first stage: a soft prompt for good and one for bad answers, SmolLM2-135M frozen",
            target="polyalign_text:recipes/meet-modules.yaml",
        ),
        RecipeSpec(
            name="text/meet-joint",
            summary="MEET's second stage: the model learns with its soft prompts, and answers under the good one",
            target="polyalign_text:recipes/meet-joint.yaml",
        ),
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
