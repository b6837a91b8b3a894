"""The `text` policy: a transformers causal language model, loaded, given LoRA if asked, and handed to the token family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from polyalign.assets import resolve_model
from polyalign.policies.adapters import add_lora
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.pretrained import AnyConfig, is_adapter, load, load_model, within_context
from polyalign.policies.tokens import VALUE_HEAD_FILE, TokenPolicy
from polyalign.randomness import keyed_seed
from polyalign_text.config import TextConfig

WHAT = "a causal language model"


class TextPolicy(TokenPolicy):
    """Prompt text to response text."""


def build(config: TextConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> TextPolicy:
    """Return the policy at its starting weights. ``seed`` keys the initialisation of LoRA layers."""
    folder = resolve_model(config.base)
    model, tokenizer, config = loaded(config, device, seed)
    encoder = PromptResponseEncoder(tokenizer, config.chat_template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "value_head"))
        policy = TextPolicy(model, encoder, config, value_head=config.value_head)
    policy.merged_base = is_adapter(folder)
    _restore_value_head(policy, Path(folder))
    return policy


def loaded(config: AnyConfig, device: str | torch.device, seed: int) -> tuple[Any, Any, AnyConfig]:
    """Return (model with LoRA if asked, tokenizer, configuration within the model's context)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model(config.base)
    tokenizer = load(AutoTokenizer, WHAT, folder, config)
    model = load_model(AutoModelForCausalLM, WHAT, folder, config, device)
    if config.lora is not None:
        add_lora(model, config.lora, seed)
    return model, tokenizer, within_context(config, model.config.get_text_config())


def _restore_value_head(policy: TextPolicy, folder: Path) -> None:
    from safetensors.torch import load_file

    if policy.value_head is not None and (folder / VALUE_HEAD_FILE).is_file():
        policy.value_head.load_state_dict(load_file(folder / VALUE_HEAD_FILE))
