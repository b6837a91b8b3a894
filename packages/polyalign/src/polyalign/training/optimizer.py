"""AdamW, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polyalign.errors import TrainingError
from polyalign.training.config import OptimizerConfig


def build_optimizer(parameters: Iterable[tuple[nn.Parameter, float]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return AdamW (or bitsandbytes' 8-bit AdamW) over the trainable parameters, given with their factors on the learning
    rate: one group per factor, which keeps it as ``scale``."""
    by_scale: dict[float, list[nn.Parameter]] = {}
    for parameter, scale in parameters:
        if parameter.requires_grad:
            by_scale.setdefault(scale, []).append(parameter)
    if not by_scale:
        raise TrainingError("nothing to train: the policy has no trainable parameters; check policy.lora.targets")
    chosen = [{"params": members, "scale": scale} for scale, members in by_scale.items()]
    settings = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.name == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise TrainingError(
                "optimizer adamw_8bit needs bitsandbytes: pip install 'polyalign[eight-bit]', or use adamw"
            ) from error
        return AdamW8bit(chosen, **settings)  # type: ignore[no-any-return]
    # One kernel for the whole step is quicker, but on GPUs it keeps its step counters there, and sharded weights do not take it.
    plain = all(one.device.type == "cpu" and not hasattr(one, "placements") for members in by_scale.values() for one in members)
    return torch.optim.AdamW(chosen, fused=plain or None, **settings)  # type: ignore[arg-type]


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the rate of optimiser step ``step`` (0-based) of ``steps``: linear warm-up, then constant or cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class MovingAverage:
    """Exponential moving average of the trainable weights, float32."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.average = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Keep ``decay`` of the average (none: its own) and take the rest from the live weights."""
        decay = self.decay if decay is None else decay
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach().float(), 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live weights and the average; call again to undo."""
        for name, parameter in self.parameters.items():
            live: Tensor = parameter.detach().clone()
            parameter.copy_(self.average[name].to(parameter.dtype))
            self.average[name] = live.float()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average as the live weights inside."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
