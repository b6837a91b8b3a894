"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import DatasetSpec, ImporterSpec, PolicySpec, RecipeSpec


@hookimpl
def polyalign_policies() -> list[PolicySpec]:
    return [
        PolicySpec(
            name="text-to-image",
            summary="diffusers text-to-image pipelines: Stable Diffusion UNets (1.x, XL) and flow transformers (SD3)",
            target="polyalign_text_to_image.policy:build",
            config="polyalign_text_to_image.config:TextToImageConfig",
            requires=("diffusers", "PIL"),
            family="denoising",
            inputs=("text",),
            outputs=("image",),
            provides=("log_probs", "predictions", "sample_grad"),
            fixture="polyalign_text_to_image.fixture:fixtures",
        )
    ]


@hookimpl
def polyalign_importers() -> list[ImporterSpec]:
    module, inputs = "polyalign_text_to_image.importers", ("text", "image")
    return [
        ImporterSpec(
            name="pick-a-pic",
            summary="Pick-a-Pic v1 and v2: people's choices between two pictures of one caption, ties kept",
            target=f"{module}:PickAPic",
            layout="caption, jpg_0, jpg_1, label_0, label_1[, model_0, model_1, ranking_id, user_id, has_label]",
            inputs=inputs,
        ),
        ImporterSpec(
            name="hpdv2",
            summary="HPDv2: pairs (train.json) and rankings by several people (test.json)",
            target=f"{module}:HPDv2",
            layout="prompt, file_path, human_preference | prompt, image_path, rank[, raw_annotations of {rank, user_hash}]",
            inputs=inputs,
        ),
        ImporterSpec(
            name="imagerewarddb",
            summary="ImageRewardDB: ranked and rated pictures of one prompt",
            target=f"{module}:ImageRewardDB",
            layout="image_path, prompt_id, prompt, rank[, overall_rating, image_text_alignment_rating, fidelity_rating]",
            inputs=inputs,
            unverified="the names of the two rating columns besides overall_rating, and their scale of 1 to 7",
        ),
    ]


@hookimpl
def polyalign_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(
            name="two-coloured",
            summary="four prompts that zoo:tiny-sd draws in blue from some noise only; no pictures",
            target="polyalign_text_to_image.shipped:two_coloured",
            licence="CC0-1.0",
        )
    ]


@hookimpl
def polyalign_recipes() -> list[RecipeSpec]:
    return [
        RecipeSpec(
            name="text-to-image/dpo-emoji",
            summary="Diffusion-DPO on a tiny flow transformer: emoji in the preferred drawing style",
            target="polyalign_text_to_image:recipes/dpo-emoji.yaml",
        ),
        RecipeSpec(
            name="text-to-image/instruct-engine-emoji",
            summary="InstructEngine grids on a tiny flow transformer: two instructions x two pictures per example",
            target="polyalign_text_to_image:recipes/instruct-engine-emoji.yaml",
        ),
        RecipeSpec(
            name="text-to-image/grpo-colour",
            summary="Flow-GRPO on a tiny flow transformer: things in blue, by a rule that names the colours of pixels",
            target="polyalign_text_to_image:recipes/grpo-colour.yaml",
        ),
        RecipeSpec(
            name="text-to-image/nft-colour",
            summary="DiffusionNFT on a tiny flow transformer: things in blue, by a rule that names the colours of pixels",
            target="polyalign_text_to_image:recipes/nft-colour.yaml",
        ),
    ]
