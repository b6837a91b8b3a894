"""LoRA by peft, the same way for every transformers and diffusers model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from polyalign.policies.config import LoraConfig
from polyalign.randomness import keyed_seed

ADAPTER = "policy"


def add_lora(model: Any, config: LoraConfig, seed: int, within: nn.Module | None = None, in_full: Sequence[str] = ()) -> None:
    """Freeze ``model`` (a transformers or diffusers model) and inject trainable LoRA layers, initialised from ``seed``.

    ``within``: a part of the model that ``all-linear`` is confined to. ``in_full``: names of modules that train beside the
    adapters, saved with them and put back by `adapters_off`.
    """
    import peft

    model.requires_grad_(False)
    alpha: Any = config.rank if config.alpha is None else config.alpha  # peft declares int and only divides by the rank
    targets = config.targets[0] if config.targets == ("all-linear",) else list(config.targets)
    if within is not None and targets == "all-linear":
        inside = {id(module) for module in within.modules()}
        targets = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "lora"))
        model.add_adapter(
            peft.LoraConfig(
                r=config.rank,
                lora_alpha=alpha,
                lora_dropout=config.dropout,
                target_modules=targets,
                modules_to_save=list(in_full) or None,
            ),
            adapter_name=ADAPTER,
        )


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """Run the base model: adapters, and what trains in full beside them, are switched off inside and back on after.

    transformers switches modules that train in full off and not on again, and switching changes what requires gradients, so both
    are put back here.
    """
    from peft.utils import ModulesToSaveWrapper

    training = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.enable_adapters(True)
        for parameter, trained in training:
            parameter.requires_grad_(trained)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
