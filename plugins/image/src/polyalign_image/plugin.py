"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import EncoderSpec, EvaluatorSpec, ModalitySpec, RewardSpec


@hookimpl
def polyalign_modalities() -> list[ModalitySpec]:
    return [
        ModalitySpec(
            name="image",
            summary="Still pictures: PNG, JPEG, WebP, GIF, BMP",
            target="polyalign_image.modality:ImageModality",
            mimes=("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"),
            requires=("PIL",),
        )
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
            name="colour_rule",
            summary="Share of the picture in the colours that its prompt names (or in one given colour)",
            target="polyalign_image.colours:ColourRule",
            config="polyalign_image.config:ColourRuleConfig",
            inputs=("text", "image"),
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
    ]
