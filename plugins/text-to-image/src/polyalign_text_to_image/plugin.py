"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import PolicySpec, RecipeSpec


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
            provides=("log_probs", "predictions"),
            fixture="polyalign_text_to_image.fixture:fixtures",
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
    ]
