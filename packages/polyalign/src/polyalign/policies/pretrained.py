"""Loading what transformers loads: models, LoRA folders on top of them, quantized weights. Errors name the way out."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any, TypeVar

import torch

from polyalign.errors import ConfigError
from polyalign.policies.config import PretrainedConfig

logger = logging.getLogger(__name__)
AnyConfig = TypeVar("AnyConfig", bound=PretrainedConfig)


def is_adapter(folder: str) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def load_model(kind: Any, what: str, folder: str, config: PretrainedConfig, device: str | torch.device) -> Any:
    """Load a model by the transformers class ``kind``; a LoRA folder is merged into its base, which then is the reference.

    ``what`` names the kind of model in errors. Raises `ConfigError` with the way out.
    """
    if is_adapter(folder):
        import peft

        base = str(json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"])
        if config.quantize != "none":
            raise ConfigError(
                f"policy.base {config.base!r} is a LoRA folder, which cannot be merged into quantized weights; "
                "merge it first (`polyalign merge`), or set policy.quantize: none"
            )
        return peft.PeftModel.from_pretrained(load_model(kind, what, base, config, device), folder).merge_and_unload()
    options: dict[str, Any] = {"dtype": "auto" if config.dtype == "auto" else getattr(torch, config.dtype)}
    if config.attention != "auto":
        options["attn_implementation"] = config.attention
    if config.quantize != "none":
        options |= {"quantization_config": _quantization(config), "device_map": {"": device}}
        return _without_packing(load(kind, what, folder, config, **options))
    return load(kind, what, folder, config, **options).to(device)


def load(kind: Any, what: str, source: str, config: PretrainedConfig, **options: Any) -> Any:
    """Call ``kind.from_pretrained``; raise `ConfigError` where ``source`` is no such thing."""
    try:
        return kind.from_pretrained(source, revision=config.revision, trust_remote_code=config.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"policy.base {config.base!r} cannot be loaded as {what} from {source!r}: {error}. "
            "Give a folder written by transformers, a hub id that can be reached, zoo:NAME or asset:NAME"
        ) from error


def _quantization(config: PretrainedConfig) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ConfigError("policy.quantize needs bitsandbytes: pip install 'polyalign[eight-bit]', or set it to none")
    if config.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def _without_packing(model: Any) -> Any:
    """Return the model with 4-bit layers that keep one layout.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 packs a layer anew at its first pass without gradients; from then on no gradient
    goes through it, in training neither, and nothing says so.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def within_context(config: AnyConfig, model: Any) -> AnyConfig:
    """Lower ``max_length`` to what the language model (its ``config``) was built for, and say so."""
    context = getattr(model, "max_position_embeddings", None) or getattr(model, "max_target_positions", None)
    if not context or config.max_length <= context:
        return config
    if config.max_response >= context:
        raise ConfigError(
            f"policy.max_response={config.max_response} does not fit the model's context of {context} tokens; lower it"
        )
    logger.warning("policy.max_length=%d is more than the model's context; using %d", config.max_length, context)
    return config.model_copy(update={"max_length": context})


def merged_copy(model: Any) -> Any:
    """Return the model with its LoRA weights added into the layers they adapt; the model itself is left as it was."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.merge()
    weights = {name: value.clone() for name, value in plain_weights(model, tuned=True).items()}
    for layer in layers:
        layer.unmerge()
    with torch.device("meta"):  # no time for random weights that are replaced at once
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def plain_weights(model: Any, tuned: bool) -> dict[str, torch.Tensor]:
    """Return the weights by the names they have without adapters. Of modules that train beside adapters: the trained copy if
    ``tuned``, else the original."""
    other = ".original_module." if tuned else ".modules_to_save."
    found = {}
    for name, value in model.state_dict().items():
        if "lora_" in name or other in name:
            continue
        for part in (".base_layer.", ".original_module.", ".modules_to_save.policy."):
            name = name.replace(part, ".")
        found[name] = value
    return found
