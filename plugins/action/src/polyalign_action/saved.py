"""Where an action policy's weights and settings are written, and read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor, nn

from polyalign.errors import ConfigError
from polyalign.records.atomic import atomic_write, write_text
from polyalign.training.config import Config

WEIGHTS, SETTINGS = "model.safetensors", "config.json"


def write_model(folder: Path, weights: Mapping[str, Tensor], config: Config) -> None:
    """Write ``model.safetensors`` and, all settings but ``base``, ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS) as file:
        file.write(save({name: value.detach().cpu().contiguous() for name, value in weights.items()}))
    write_text(folder / SETTINGS, json.dumps(config.model_dump(mode="json", exclude={"base"}), indent=1))


def restore(policy: nn.Module, folder: Path, fresh: tuple[str, ...]) -> None:
    """Read the weights that `write_model` wrote. Modules whose names begin as in ``fresh`` may be missing on either side: the
    policy keeps its own, and what it has no place for is left out. Raises `ConfigError` where the rest does not fit."""
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"policy.base {str(folder)!r} holds no {WEIGHTS}; give the model folder of an earlier run, or drop it")
    own, read = policy.state_dict(), load_file(folder / WEIGHTS)
    weights = {name: value for name, value in read.items() if name in own or not name.startswith(fresh)}
    weights |= {name: value for name, value in own.items() if name not in read and name.startswith(fresh)}
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"policy.base {str(folder)!r} does not fit these settings ({SETTINGS} there holds its own): {error}"
        ) from error
