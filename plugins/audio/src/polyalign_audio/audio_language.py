"""The `audio-language` policy: a transformers model that reads clips among text (Qwen2-Audio, and those with
``get_audio_features``: Voxtral, Audio Flamingo 3, GLM-ASR ...)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.policies.completion_mask import Encoded
from polyalign.policies.generation import left_padded_embeddings
from polyalign.policies.media_features import MediaEncoder
from polyalign.policies.media_tokens import MediaTokenPolicy
from polyalign.policies.media_training import freeze
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign.policies.processor_encoder import ProcessorEncoder
from polyalign_audio.clips import Clips
from polyalign_audio.config import AudioLanguageConfig

WHAT = "a model that reads clips among text"


class ClipFeatures(MediaEncoder):
    """Calls ``get_audio_features`` where a model has it; Qwen2-Audio, which has not, part by part."""

    def _call(self, media: Sequence[Mapping[str, Any]], tokens: int) -> tuple[list[Tensor], Mapping[str, Any]]:
        if hasattr(self.model.model, "get_audio_features"):
            return super()._call(media, tokens)
        heard, frames = (torch.cat([m[name] for m in media]) for name in ("input_features", "feature_attention_mask"))
        return [qwen2_audio_features(self.model.model, heard, frames)], {}


def qwen2_audio_features(body: Any, heard: Tensor, frames: Tensor) -> Tensor:
    """Return the features of clips one after another, ``[tokens, H]``: as in Qwen2AudioModel.forward, whose encoder looks at
    no frame of padding. ``heard`` ``[N, mels, F]``, ``frames`` ``[N, F]``: 1 where there is sound."""
    inner, outer = body.audio_tower._get_feat_extract_output_lengths(frames.sum(-1))
    length = (heard.shape[-1] - 2) // 2 + 1
    places = torch.arange(length, device=heard.device)
    seen = (places[None] < inner[:, None])[:, None, None, :].expand(-1, 1, length, -1)  # [N, 1, queries, keys]
    mask = torch.zeros(seen.shape, dtype=body.dtype, device=heard.device).masked_fill(~seen, torch.finfo(body.dtype).min)
    states = body.audio_tower(heard, attention_mask=mask).last_hidden_state
    features: Tensor = body.multi_modal_projector(states)
    return features[places[: features.shape[1]][None] < outer[:, None]]


class AudioLanguagePolicy(MediaTokenPolicy):
    """Prompts of text and clips (several, anywhere, or none) to text. Clips inside responses are read and not scored."""

    inputs = frozenset({"text", "audio"})
    media_encoder: ClassVar[type[MediaEncoder]] = ClipFeatures
    encoder: ProcessorEncoder

    def media_inputs(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        if self.mode != "decoder":
            return super().media_inputs(rows, input_ids, attention_mask)
        return {"inputs_embeds": left_padded_embeddings(self, rows, input_ids)}

    def _write(self, folder: Path, model: Any) -> None:
        super()._write(folder, model)
        self.encoder.processor.save_pretrained(folder)


def encoder_of(processor: Any, media_id: int, chat_template: Any = "auto") -> ProcessorEncoder:
    """Return the encoder of prompts with clips. ``media_id``: as in `MediaKind`."""
    return ProcessorEncoder(processor, [Clips(str(processor.audio_token), media_id, processor.feature_extractor)], chat_template)


def build(config: AudioLanguageConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> AudioLanguagePolicy:
    """Return the policy at its starting weights. ``seed`` keys the initialisation of LoRA layers."""
    from transformers import AutoModelForMultimodalLM, AutoProcessor

    folder = resolve_model(config.base)
    processor = load(AutoProcessor, WHAT, folder, config)
    model = load_model(AutoModelForMultimodalLM, WHAT, folder, config, device)
    config = within_context(config, model.config.get_text_config())
    freeze(model, config, ("audio",), seed)
    encoder = encoder_of(processor, model.config.audio_token_id, config.chat_template)
    policy = AudioLanguagePolicy(model, encoder, config)
    policy.merged_base = is_adapter(folder)
    return policy
