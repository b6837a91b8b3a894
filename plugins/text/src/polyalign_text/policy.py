"""The `text` policy: a transformers causal language model, loaded, given LoRA if asked, and handed to the token family."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError
from polyalign.policies.adapters import add_lora
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.tokens import VALUE_HEAD_FILE, TokenPolicy
from polyalign.randomness import keyed_seed
from polyalign_text.config import TextConfig

logger = logging.getLogger(__name__)


class TextPolicy(TokenPolicy):
    """Prompt text to response text. ``merged_base``: the base was made by merging a LoRA folder, so it lies nowhere on disk."""

    merged_base = False

    def save(self, folder: Path) -> None:
        """Write a folder that transformers loads by itself: an adapter with LoRA, whole weights without. Over a merged base
        an adapter could not be loaded, so it is merged too."""
        super().save(folder)
        if self.merged_base and self.has_adapters:
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                (folder / name).unlink()
            merged_copy(self.model).save_pretrained(folder)


def build(config: TextConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> TextPolicy:
    """Return the policy at its starting weights. ``seed`` keys the initialisation of LoRA layers."""
    folder = resolve_model(config.base)
    encoder = PromptResponseEncoder(_load_tokenizer(folder, config), config.chat_template)
    model = _load_model(folder, config).to(device)
    config = _within_context(config, model.config.get_text_config())
    if config.lora is not None:
        add_lora(model, config.lora, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "value_head"))
        policy = TextPolicy(model, encoder, config, value_head=config.value_head)
    policy.merged_base = _is_adapter(folder)
    _restore_value_head(policy, Path(folder))
    return policy


def merged_copy(model: Any) -> Any:
    """Return the model with its LoRA weights added into the layers they adapt; the model itself is left as it was."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.merge()
    weights = {
        name.replace(".base_layer.", "."): value.clone() for name, value in model.state_dict().items() if "lora_" not in name
    }
    for layer in layers:
        layer.unmerge()
    with torch.device("meta"):  # no time for random weights that are replaced at once
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def _is_adapter(folder: str) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def _load_tokenizer(folder: str, config: TextConfig) -> Any:
    from transformers import AutoTokenizer

    return _loaded(AutoTokenizer, folder, config)


def _load_model(folder: str, config: TextConfig) -> Any:
    """Load the model; a LoRA folder is merged into its base, which then is the reference."""
    from transformers import AutoModelForCausalLM

    if _is_adapter(folder):
        import peft

        base = str(json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"])
        return peft.PeftModel.from_pretrained(_load_model(base, config), folder).merge_and_unload()
    options: dict[str, Any] = {"dtype": "auto" if config.dtype == "auto" else getattr(torch, config.dtype)}
    if config.attention != "auto":
        options["attn_implementation"] = config.attention
    return _loaded(AutoModelForCausalLM, folder, config, **options)


def _loaded(kind: Any, source: str, config: TextConfig, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, revision=config.revision, trust_remote_code=config.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"policy.base {config.base!r} cannot be loaded as a causal language model from {source!r}: {error}. "
            "Give a folder written by transformers, a hub id that can be reached, or asset:NAME (`polyalign assets list`)"
        ) from error


def _within_context(config: TextConfig, model: Any) -> TextConfig:
    """Lower ``max_length`` to what the model was built for, and say so."""
    context = getattr(model, "max_position_embeddings", None)
    if not context or config.max_length <= context:
        return config
    if config.max_response >= context:
        raise ConfigError(
            f"policy.max_response={config.max_response} does not fit the model's context of {context} tokens; lower it"
        )
    logger.warning("policy.max_length=%d is more than the model's context; using %d", config.max_length, context)
    return config.model_copy(update={"max_length": context})


def _restore_value_head(policy: TextPolicy, folder: Path) -> None:
    from safetensors.torch import load_file

    if policy.value_head is not None and (folder / VALUE_HEAD_FILE).is_file():
        policy.value_head.load_state_dict(load_file(folder / VALUE_HEAD_FILE))
