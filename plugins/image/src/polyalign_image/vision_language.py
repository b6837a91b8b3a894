"""The `vision-language` policy: a transformers image-text-to-text model, its parts frozen or trained as the recipe says."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from polyalign.assets import resolve_model
from polyalign.policies.media_tokens import MediaTokenPolicy
from polyalign.policies.media_training import freeze
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign_image.config import VisionLanguageConfig
from polyalign_image.picture_kind import PictureEncoder

WHAT = "an image-text-to-text model"
AnyConfig = TypeVar("AnyConfig", bound=VisionLanguageConfig)


class VisionLanguagePolicy(MediaTokenPolicy):
    """Prompts of text and pictures (several, anywhere) to text. Pictures inside responses are read and not scored."""

    inputs = frozenset({"text", "image"})


def build(config: VisionLanguageConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> VisionLanguagePolicy:
    """Return the policy at its starting weights. ``seed`` keys the initialisation of LoRA layers."""
    model, processor, config = loaded(config, device)
    freeze(model, config, ("image",), seed)
    encoder = PictureEncoder(processor, model.config.image_token_id, config.chat_template)
    policy = VisionLanguagePolicy(model, encoder, config)
    policy.merged_base = is_adapter(resolve_model(config.base))
    return policy


def loaded(config: AnyConfig, device: str | torch.device) -> tuple[Any, Any, AnyConfig]:
    """Return model and processor of the recipe's base, and the configuration within the model's context."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = resolve_model(config.base)
    sizes = {name: value for name in ("min_pixels", "max_pixels") if (value := getattr(config, name)) is not None}
    processor = load(AutoProcessor, WHAT, folder, config, **sizes)
    model = load_model(AutoModelForImageTextToText, WHAT, folder, config, device)
    return model, processor, within_context(config, model.config.get_text_config())
