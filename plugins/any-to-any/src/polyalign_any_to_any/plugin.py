"""What this distribution adds to polyalign. Light: importing it costs milliseconds."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import TOKEN_POLICY_PROVIDES, DatasetSpec, PolicySpec, RecipeSpec, RewardSpec

PROVIDES = tuple(name for name in TOKEN_POLICY_PROVIDES if name not in ("mean_logit", "token_targets"))


@hookimpl
def polyalign_policies() -> Iterable[PolicySpec]:
    return [
        PolicySpec(
            name="any-to-any",
            summary="any causal language model over text and codes of media: pictures, sound and text, in and out",
            target="polyalign_any_to_any.policy:build",
            config="polyalign_any_to_any.config:AnyToAnyConfig",
            requires=("torch", "transformers", "peft"),
            family="tokens",
            inputs=("text", "image", "audio"),
            outputs=("text", "image", "audio"),
            provides=PROVIDES,
            fixture="polyalign_any_to_any.fixture:fixture",
        ),
        PolicySpec(
            name="picture-tokens",
            summary="Chameleon, Emu3 and Janus: text and pictures, in prompts and in responses",
            target="polyalign_any_to_any.native:build",
            config="polyalign_any_to_any.config:PictureTokensConfig",
            requires=("torch", "transformers", "peft"),
            family="tokens",
            inputs=("text", "image"),
            outputs=("text", "image"),
            provides=PROVIDES,
            fixture="polyalign_any_to_any.native_fixture:fixture",
        ),
        PolicySpec(
            name="omni-language",
            summary="the thinker of Qwen2.5-Omni: sound, pictures, clips and text, several in one prompt, to text",
            target="polyalign_any_to_any.omni:build",
            config="polyalign_any_to_any.omni_config:OmniLanguageConfig",
            requires=("torch", "transformers", "peft"),
            family="tokens",
            inputs=("text", "image", "audio", "video"),
            outputs=("text",),
            provides=TOKEN_POLICY_PROVIDES,
            fixture="polyalign_any_to_any.omni_fixture:fixture",
        ),
    ]


@hookimpl
def polyalign_datasets() -> Iterable[DatasetSpec]:
    return [
        DatasetSpec(
            name="emoji-any",
            summary="32 things as word, picture and spoken word: pairs over the six directions between them",
            target="polyalign_any_to_any.shipped:emoji_any",
            licence="Noto Emoji pictures Apache-2.0, Twemoji pictures CC-BY-4.0, words MIT",
        )
    ]


@hookimpl
def polyalign_rewards() -> Iterable[RewardSpec]:
    return [
        RewardSpec(
            name="right_thing",
            summary="Whether a word, a picture or a spoken word is of the thing that the prompt is of",
            target="polyalign_any_to_any.right_thing:RightThing",
            config="polyalign_any_to_any.config:RightThingConfig",
            requires=("torch",),
            inputs=("text", "image", "audio"),
        )
    ]


@hookimpl
def polyalign_recipes() -> Iterable[RecipeSpec]:
    return [
        RecipeSpec(
            name="any-to-any/dpo-tiny-any",
            summary="DPO on pairs of words, pictures and spoken words in one run, the right thing over another; a laptop CPU",
            target="polyalign_any_to_any:recipes/dpo-tiny-any.yaml",
        )
    ]
