"""The `video-language` policy: a transformers model that reads clips, pictures and text, and answers in text."""

from __future__ import annotations

from typing import Any

import torch

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError
from polyalign.policies.media_kinds import MediaKind, installed_kind
from polyalign.policies.media_tokens import MediaTokenPolicy
from polyalign.policies.media_training import freeze
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign.policies.processor_encoder import ProcessorEncoder
from polyalign_video.clip_kind import ClipKind
from polyalign_video.config import VideoLanguageConfig

WHAT = "a model that reads video and text"


class VideoLanguagePolicy(MediaTokenPolicy):
    """Prompts of text, clips and pictures (several, anywhere) to text. Media inside responses are read and not scored."""

    inputs = frozenset({"text", "image", "video"})


def build(config: VideoLanguageConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> VideoLanguagePolicy:
    """Return the policy at its starting weights. ``seed`` keys the initialisation of LoRA layers.

    Raises `ConfigError` for a model that has no token for video.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = resolve_model(config.base)
    sizes = {name: value for name in ("min_pixels", "max_pixels") if (value := getattr(config, name)) is not None}
    processor = load(AutoProcessor, WHAT, folder, config, **sizes)
    model = load_model(AutoModelForImageTextToText, WHAT, folder, config, device)
    policy = assembled(model, processor, within_context(config, model.config.get_text_config()), seed)
    policy.merged_base = is_adapter(folder)
    return policy


def assembled(model: Any, processor: Any, config: VideoLanguageConfig, seed: int = 0) -> VideoLanguagePolicy:
    """Return the policy over a model and its processor, its parts frozen or trained as the configuration says."""
    kinds = kinds_of(model, processor, config)
    freeze(model, config, [kind.modality for kind in kinds], seed)
    return VideoLanguagePolicy(model, ProcessorEncoder(processor, kinds, config.chat_template), config)


def kinds_of(model: Any, processor: Any, config: VideoLanguageConfig) -> list[MediaKind]:
    """Return clips, and pictures where the model knows them and a plugin that decodes them is installed."""
    placeholder, media_id = getattr(processor, "video_token", None), getattr(model.config, "video_token_id", None)
    if placeholder is None or media_id is None:
        raise ConfigError(
            f"policy.base {config.base!r} has no token for video; take a model that reads clips, such as Qwen2.5-VL, or the "
            "policy vision-language for one that reads pictures"
        )
    picture = installed_kind("image", processor, model.config)
    return [ClipKind(str(placeholder), media_id, config.frames, config.fps), *([picture] if picture else [])]
