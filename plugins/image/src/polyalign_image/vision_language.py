"""The `vision-language` policy: a transformers image-text-to-text model, its parts frozen or trained as the recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError
from polyalign.policies.adapters import add_lora
from polyalign.policies.completion_mask import Medium
from polyalign.policies.media_features import Part, parts_of
from polyalign.policies.media_tokens import MediaTokenPolicy
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign_image.config import VisionLanguageConfig
from polyalign_image.processor_encoder import ProcessorEncoder

WHAT = "an image-text-to-text model"
AnyConfig = TypeVar("AnyConfig", bound=VisionLanguageConfig)


class VisionLanguagePolicy(MediaTokenPolicy):
    """Prompts of text and pictures (several, anywhere) to text. Pictures inside responses are read and not scored."""

    inputs = frozenset({"text", "image"})
    modality: ClassVar[str] = "image"
    encoder: ProcessorEncoder

    def probe_medium(self) -> tuple[Medium, tuple[int, ...]]:
        return self.encoder.probe_medium()

    def _write(self, folder: Path, model: Any) -> None:
        super()._write(folder, model)
        self.encoder.processor.save_pretrained(folder)


def build(config: VisionLanguageConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> VisionLanguagePolicy:
    """Return the policy at its starting weights. ``seed`` keys the initialisation of LoRA layers."""
    model, processor, config = loaded(config, device)
    freeze(model, config, seed)
    encoder = ProcessorEncoder(processor, model.config.image_token_id, config.chat_template)
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


def freeze(model: Any, config: VisionLanguageConfig, seed: int = 0) -> None:
    """Set which parameters train, and add LoRA to the language part where it is asked for."""
    parts = parts_of(model, "image")
    language = config.language if config.language != "auto" else "lora" if config.lora else "full"
    projector = config.projector if config.projector != "auto" else "frozen" if config.lora else "full"
    if (language == "lora") != (config.lora is not None):
        raise ConfigError(f"policy.language={config.language!r} and policy.lora={config.lora!r} contradict each other")
    trained: set[Part] = {
        part for part, how in (("tower", config.tower), ("projector", projector), ("language", language)) if how == "full"
    }
    if config.lora is None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parts[name] in trained)
        return
    in_full = [name for name, module in model.named_modules() if _all_in(name, module, parts, trained)]
    outermost = [name for name in in_full if not any(name.startswith(f"{other}.") for other in in_full)]
    add_lora(model, config.lora, seed, within=model.get_decoder(), in_full=outermost)


def _all_in(name: str, module: torch.nn.Module, parts: dict[str, Part], trained: set[Part]) -> bool:
    own = [parts[f"{name}.{inner}"] for inner, _ in module.named_parameters()] if name else []
    return bool(own) and set(own) <= trained
