"""The `omni-language` policy: the thinker of Qwen2.5-Omni, which reads sound, pictures, clips and text and answers in text."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError
from polyalign.policies.base import Batch
from polyalign.policies.completion_mask import Encoded, Medium
from polyalign.policies.generation import left_padded_embeddings
from polyalign.policies.media_features import towers_of
from polyalign.policies.media_kinds import MediaKind, installed_kind
from polyalign.policies.media_tokens import MediaTokenPolicy
from polyalign.policies.media_training import freeze
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign.policies.processor_encoder import ProcessorEncoder
from polyalign.records.schema import MediaPart, TextPart
from polyalign_any_to_any.omni_config import OmniLanguageConfig

WHAT = "Qwen2.5-Omni"
MODALITIES = ("image", "audio", "video")


class TimedClips(MediaKind):
    """Clips as another plugin's kind opens them, for a processor that takes frames for half a second apart unless it is told."""

    modality = "video"

    def __init__(self, kind: MediaKind, size: dict[str, int]) -> None:
        super().__init__(kind.placeholder, kind.media_id)
        self.kind = kind
        self.plural, self.shrink, self.settings = kind.plural, kind.shrink, f"{kind.settings}, frames of {size}"  # type: ignore[misc]

    def size(self, data: bytes) -> Hashable:
        return self.kind.size(data)

    def open(self, data: bytes) -> Any:
        return self.kind.open(data)

    def blank(self, size: Any) -> Any:
        return self.kind.blank(size)

    def probe(self, number: int) -> Any:
        return self.kind.probe(number)

    def arguments(self, media: Sequence[Any]) -> dict[str, Any]:
        """As of the kind that is wrapped, with the rate of the frames; clips of one call share theirs."""
        return {**self.kind.arguments(media), "fps": float(media[0].fps)}


class OmniEncoder(ProcessorEncoder):
    """Media stand between a start and an end token, which the model counts when it gives positions."""

    def __init__(self, processor: Any, kinds: Sequence[MediaKind], chat_template: Any = "auto") -> None:
        seen, heard = (
            (getattr(processor, f"{sense}_bos_token"), getattr(processor, f"{sense}_eos_token")) for sense in ("vision", "audio")
        )
        self.around = {"image": seen, "video": seen, "audio": heard}
        super().__init__(processor, kinds, chat_template)
        self.start_ids = frozenset(self.tokenizer.convert_tokens_to_ids([seen[0], heard[0]]))

    def text(self, parts: Sequence[TextPart | MediaPart], where: str) -> str:
        return "".join(
            part.text if isinstance(part, TextPart) else self._kind(part).placeholder.join(self.around[part.media.modality])
            for part in parts
        )

    def probe_media(self) -> list[tuple[Medium, tuple[int, ...]]]:
        found = []
        for medium, block in super().probe_media():
            start, end = self.tokenizer.convert_tokens_to_ids(list(self.around[medium.modality]))
            found.append((medium, (start, *block, end)))
        return found


class OmniLanguagePolicy(MediaTokenPolicy):
    """Prompts of text, pictures, clips and sound (several, anywhere) to text. Media inside responses are read and not scored.

    The sound track of a clip is not heard: give it as a part of its own.
    """

    inputs = frozenset({"text", *MODALITIES})
    layout: ClassVar[frozenset[str]] = frozenset({"video_second_per_grid", "feature_attention_mask"})
    encoder: OmniEncoder

    def position_inputs(self, batch: Batch) -> dict[str, Tensor]:
        inputs = super().position_inputs(batch)
        inputs["input_ids"] = self.without_strays(inputs["input_ids"])
        if "feature_attention_mask" in inputs:
            inputs["audio_seqlens"] = inputs["feature_attention_mask"].sum(-1)
        if "video_second_per_grid" in inputs:
            inputs["second_per_grids"] = inputs["video_second_per_grid"]
        return inputs

    def without_strays(self, ids: Tensor) -> Tensor:
        """Return ids ``[N, L]`` to count positions by: the model takes every start token for a medium, so one that begins none
        (text may spell it out, and a policy may draw it) becomes another token."""
        starts, media = (
            torch.tensor(sorted(known), device=ids.device) for known in (self.encoder.start_ids, self.encoder.media_ids)
        )
        here = torch.isin(ids, media)
        begins = torch.cat([here[:, 1:], torch.zeros_like(here[:, :1])], 1)
        return ids.masked_fill(torch.isin(ids, starts) & ~begins, self.collator.pad_id)

    def continued(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor, **how: Any) -> Tensor:
        found = super().continued(rows, self.without_strays(input_ids), attention_mask, **how)
        return torch.cat([input_ids, found[:, input_ids.shape[1] :]], 1)

    def media_inputs(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        """Embeddings with the features in place, since the model takes features of sound in no other way, and what it counts
        positions from."""
        batch = self.collator.layout((), rows, torch.ones(len(rows)), None).to(input_ids.device)
        places = self.by_occurrence(batch) if batch.tensors.get("media") else {}
        return {"inputs_embeds": left_padded_embeddings(self, rows, input_ids), **places}


def build(config: OmniLanguageConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> OmniLanguagePolicy:
    """Return the policy at its starting weights; of a whole Qwen2.5-Omni only the thinker is loaded. ``seed`` keys the
    initialisation of LoRA layers."""
    from transformers import AutoProcessor, Qwen2_5OmniThinkerForConditionalGeneration

    folder = resolve_model(config.base)
    sizes = {name: value for name in ("min_pixels", "max_pixels") if (value := getattr(config, name)) is not None}
    processor = load(AutoProcessor, WHAT, folder, config, **sizes)
    model = load_model(Qwen2_5OmniThinkerForConditionalGeneration, WHAT, folder, config, device)
    policy = assembled(model, processor, within_context(config, model.config.get_text_config()), seed)
    policy.merged_base = is_adapter(folder)
    return policy


def assembled(model: Any, processor: Any, config: OmniLanguageConfig, seed: int = 0) -> OmniLanguagePolicy:
    """Return the policy over a thinker and its processor, its parts frozen or trained as the configuration says."""
    kinds = kinds_of(model, processor, config)
    freeze(model, config, MODALITIES, seed)
    read = towers_of(model, [kind.modality for kind in kinds])
    for tower in towers_of(model, MODALITIES):
        if tower not in read:  # no installed plugin opens what it encodes
            tower.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "audio_bos_eos_token" in name:  # no forward of the thinker reads it
            parameter.requires_grad_(False)
    return OmniLanguagePolicy(model, OmniEncoder(processor, kinds, config.chat_template), config)


def kinds_of(model: Any, processor: Any, config: OmniLanguageConfig) -> list[MediaKind]:
    """Return the media that the model knows and installed plugins decode."""
    frames = frame_size(processor, config)
    settings = {
        "audio": {"extractor": processor.feature_extractor},
        "video": {"frames": config.frames, "fps": config.fps},
    }
    kinds = [installed_kind(modality, processor, model.config, **settings.get(modality, {})) for modality in MODALITIES]
    found = [TimedClips(kind, frames) if kind.modality == "video" else kind for kind in kinds if kind is not None]
    if not found:
        raise ConfigError(
            "the policy omni-language finds no plugin that decodes pictures, sound or clips; install some: "
            "pip install 'polyalign-any-to-any[omni]'"
        )
    return found


def frame_size(processor: Any, config: OmniLanguageConfig) -> dict[str, int]:
    """Return within how many pixels frames are scaled. The processor's class has limits that overrule those of its part for
    video, so the configuration's are set there."""
    size = dict(processor.videos_kwargs["size"])
    if config.max_pixels is not None:
        size = {"shortest_edge": min(size["shortest_edge"], config.max_pixels), "longest_edge": config.max_pixels}
    if config.min_pixels is not None:
        size = {"shortest_edge": config.min_pixels, "longest_edge": max(size["longest_edge"], config.min_pixels)}
    processor.videos_kwargs = {**processor.videos_kwargs, "size": size}
    return size
