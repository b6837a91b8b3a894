"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import (
    TOKEN_POLICY_PROVIDES,
    DatasetSpec,
    EncoderSpec,
    EvaluatorSpec,
    ImporterSpec,
    ModalitySpec,
    PolicySpec,
    RecipeSpec,
    RewardSpec,
)


@hookimpl
def polyalign_modalities() -> list[ModalitySpec]:
    return [
        ModalitySpec(
            name="image",
            summary="Still pictures: PNG, JPEG, WebP, GIF, BMP",
            target="polyalign_image.modality:ImageModality",
            mimes=("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"),
            media_kind="polyalign_image.picture_kind:PictureKind",
            requires=("PIL",),
        )
    ]


@hookimpl
def polyalign_policies() -> list[PolicySpec]:
    return [
        PolicySpec(
            name="vision-language",
            summary="any transformers image-text-to-text model: text and pictures to text, parts frozen, in full or by LoRA",
            target="polyalign_image.vision_language:build",
            config="polyalign_image.config:VisionLanguageConfig",
            requires=("torch", "transformers", "peft"),
            family="tokens",
            inputs=("text", "image"),
            outputs=("text",),
            provides=TOKEN_POLICY_PROVIDES,
            fixture="polyalign_image.fixture:fixture",
        ),
        PolicySpec(
            name="alignment-levels",
            summary="AlignGPT: a vision-language model told how well captions fit, then tuned with a mixture of levels",
            target="polyalign_image.alignment_levels:build",
            config="polyalign_image.config:AlignmentLevelsConfig",
            requires=("torch", "transformers", "peft"),
            family="tokens",
            inputs=("text", "image"),
            outputs=("text",),
            provides=TOKEN_POLICY_PROVIDES,
            fixture="polyalign_image.fixture:levels_fixture",
        ),
    ]


@hookimpl
def polyalign_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="clip",
            summary="CLIP picture and text embeddings, transformers or open_clip layout",
            target="polyalign_image.clip:ClipEncoder",
            config="polyalign_image.config:ClipConfig",
            inputs=("image", "text"),
            requires=("transformers", "open_clip"),
        ),
        EncoderSpec(
            name="efficientnet-lite0",
            summary="ImageNet features of EfficientNet-Lite0, 1,280 numbers per picture",
            target="polyalign_image.efficientnet:EfficientNetLite0",
            config="polyalign_image.config:EfficientNetConfig",
            inputs=("image",),
            requires=("timm",),
        ),
    ]


@hookimpl
def polyalign_rewards() -> list[RewardSpec]:
    return [
        RewardSpec(
            name="clip_score",
            summary="How well a picture fits its prompt: weight x max(cosine, 0) of CLIP embeddings",
            target="polyalign_image.text_fit:ClipScore",
            config="polyalign_image.config:ClipScoreConfig",
            inputs=("text", "image"),
        ),
        RewardSpec(
            name="pick_score",
            summary="PickScore, a CLIP tuned to people's picks between two pictures",
            target="polyalign_image.text_fit:PickScore",
            config="polyalign_image.config:PickScoreConfig",
            inputs=("text", "image"),
        ),
        RewardSpec(
            name="caption_truth",
            summary="What a caption says truly of its picture, less what it says falsely, by rule",
            target="polyalign_image.hallucination:CaptionTruth",
            config="polyalign_image.config:AttributeHallucinationConfig",
            inputs=("text", "image"),
        ),
        RewardSpec(
            name="tint",
            summary="How near the coloured part of a picture comes to a colour; differentiable",
            target="polyalign_image.tint:Tint",
            config="polyalign_image.config:TintConfig",
            inputs=("text", "image"),
        ),
        RewardSpec(
            name="colour_rule",
            summary="Share of the picture in the colours that its prompt names (or in one given colour)",
            target="polyalign_image.colours:ColourRule",
            config="polyalign_image.config:ColourRuleConfig",
            inputs=("text", "image"),
            rule=True,
        ),
        RewardSpec(
            name="image_size",
            summary="A picture's width, height and their ratio are within limits",
            target="polyalign_image.verifiers:ImageSize",
            config="polyalign_image.config:ImageSizeConfig",
            inputs=("image",),
            rule=True,
        ),
        RewardSpec(
            name="dominant_colour",
            summary="A colour covers more of a picture than any other",
            target="polyalign_image.verifiers:DominantColour",
            config="polyalign_image.config:DominantColourConfig",
            inputs=("image",),
            rule=True,
        ),
        RewardSpec(
            name="ocr_text",
            summary="How much of a given text can be read in a picture (needs polyalign-image[ocr])",
            target="polyalign_image.verifiers:OcrText",
            config="polyalign_image.config:OcrTextConfig",
            inputs=("text", "image"),
            rule=True,
        ),
    ]


@hookimpl
def polyalign_importers() -> list[ImporterSpec]:
    module, inputs = "polyalign_image.importers", ("text", "image")
    return [
        ImporterSpec(
            name="rlaif-v",
            summary="RLAIF-V: pairs of answers about a picture",
            target=f"{module}:Described",
            layout="image, question, chosen, rejected[, ds_name, origin_dataset]",
            inputs=inputs,
        ),
        ImporterSpec(
            name="rlhf-v",
            summary="RLHF-V: answers corrected by people",
            target=f"{module}:RLHFV",
            layout="image, text: JSON of question, chosen, rejected",
            inputs=inputs,
        ),
        ImporterSpec(
            name="spa-vl",
            summary="SPA-VL: safety preferences about pictures",
            target=f"{module}:Described",
            layout="image, question, chosen, rejected",
            inputs=inputs,
        ),
        ImporterSpec(
            name="vlfeedback",
            summary="VLFeedback: several models' answers with ratings and rationales per aspect",
            target=f"{module}:VLFeedback",
            layout="prompt, img_path | image, completions of {model, response, annotations{aspect: {Rating, Rationale}}}",
            inputs=inputs,
            unverified="whether the published Parquet files name the picture image or img_path: both are read",
        ),
        ImporterSpec(
            name="mm-rlhf",
            summary="MM-RLHF: pairs about pictures and clips, with reasons",
            target=f"{module}:MMRLHF",
            layout="dpo_pairs: prompt, chosen, rejected, image | video[, chosen_reason, rejected_reason]",
            inputs=("text", "image", "video"),
            unverified="the full rankings of data.jsonl, which are not read",
        ),
    ]


@hookimpl
def polyalign_evaluators() -> list[EvaluatorSpec]:
    return [
        EvaluatorSpec(
            name="style_rate",
            summary="Share of pictures that look like the preferred ones of a data set, by a classifier on frozen features",
            target="polyalign_image.style:StyleRate",
            config="polyalign_image.config:StyleRateConfig",
            inputs=("image",),
        ),
        EvaluatorSpec(
            name="caption_retrieval",
            summary="Share of pictures whose prompt is among the k captions of a pool that fit best",
            target="polyalign_image.retrieval:CaptionRetrieval",
            config="polyalign_image.config:CaptionRetrievalConfig",
            inputs=("text", "image"),
        ),
        EvaluatorSpec(
            name="attribute_hallucination",
            summary="Share of captions that claim a false name, kind, colour or tag of the picture they describe, by rule",
            target="polyalign_image.hallucination:AttributeHallucination",
            config="polyalign_image.config:AttributeHallucinationConfig",
            inputs=("image", "text"),
        ),
    ]


@hookimpl
def polyalign_recipes() -> list[RecipeSpec]:
    recipes = {
        "sft-captions": "supervised fine-tuning of a vision-language model on true captions and answers",
        "dpo-hallucination": "DPO against invented attributes, true captions over changed ones; norm layers only",
        "grpo-hallucination": "GRPO against invented attributes, on the model's own captions",
        "aligngpt-pretrain": "AlignGPT, first stage: level embeddings and projector",
        "aligngpt-tune": "AlignGPT, second stage: instruction tuning with the gated mixture of levels",
    }
    return [
        RecipeSpec(name=f"image/{name}", summary=summary, target=f"polyalign_image:recipes/{name}.yaml")
        for name, summary in recipes.items()
    ]


@hookimpl
def polyalign_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(
            name="emoji-captions",
            summary="pictures and captions whose every claim can be checked: true, noisy, and true over one wrong attribute",
            target="polyalign_image.shipped:emoji_captions",
            licence="Noto Emoji pictures Apache-2.0, Twemoji pictures CC-BY-4.0, names and tags MIT",
        )
    ]
