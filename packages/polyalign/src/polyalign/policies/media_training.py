"""Which parts of a model that reads media train: tower, projector, language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from polyalign.errors import ConfigError
from polyalign.policies.adapters import add_lora
from polyalign.policies.config import MediaTokensConfig
from polyalign.policies.media_features import Part, parts_of


def freeze(model: Any, config: MediaTokensConfig, modalities: Sequence[str], seed: int = 0) -> None:
    """Set which parameters train, and add LoRA to the language part where it is asked for; ``seed`` keys its first weights.

    Raises `ConfigError` where ``policy.language`` and ``policy.lora`` contradict each other, and for norms where there are none.
    """
    parts = parts_of(model, modalities)
    language = config.language if config.language != "auto" else "lora" if config.lora else "full"
    projector = config.projector if config.projector != "auto" else "frozen" if config.lora else "full"
    if (language == "lora") != (config.lora is not None):
        raise ConfigError(f"policy.language={config.language!r} and policy.lora={config.lora!r} contradict each other")
    hows: dict[Part, str] = {"tower": config.tower, "projector": projector, "language": language}
    trained = {part for part, how in hows.items() if how == "full"}
    if config.lora is None:
        norms = _norms(model, parts) if language == "norms" else frozenset()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parts[name] in trained or name in norms)
        return
    in_full = [name for name, module in model.named_modules() if _all_in(name, module, parts, trained)]
    outermost = [name for name in in_full if not any(name.startswith(f"{other}.") for other in in_full)]
    add_lora(model, config.lora, seed, within=model.get_decoder(), in_full=outermost)


def _all_in(name: str, module: nn.Module, parts: dict[str, Part], trained: set[Part]) -> bool:
    if isinstance(module, nn.ModuleList):  # is never called, so there is nothing that peft could put in its place
        return False
    own = [parts[f"{name}.{inner}"] for inner, _ in module.named_parameters()] if name else []
    return bool(own) and set(own) <= trained


def _norms(model: nn.Module, parts: dict[str, Part]) -> frozenset[str]:
    """Return the names of the language part's weights that lie in normalisation layers, which transformers all calls norms."""
    layers = [(name, module) for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    names = [f"{name}.{own}" for name, module in layers for own, _ in module.named_parameters(recurse=False)]
    found = frozenset(name for name in names if parts[name] == "language")
    if not found:
        raise ConfigError(
            "policy.language is 'norms', but no module of the language model whose class is named a norm has weights; "
            "use lora (with policy.lora) or full"
        )
    return found
