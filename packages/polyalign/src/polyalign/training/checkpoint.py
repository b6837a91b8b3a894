"""Checkpoints: safetensors in a folder that appears whole or not at all, verified before use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyalign.training.optimizer import MovingAverage

MANIFEST = "manifest.json"


@dataclass
class State:
    """Everything a run needs to go on exactly where it stood. Randomness is keyed by step, so none is stored."""

    policy: dict[str, nn.Parameter]
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    progress: dict[str, Any] = field(default_factory=dict)  # step, best value and the like: plain JSON
    lagging: MovingAverage | None = None  # the weights that answer in an online run, if they are others

    @property
    def averages(self) -> dict[str, MovingAverage]:
        """Return the averages that there are, by the name of their file."""
        named = {"average.safetensors": self.average, "lagging.safetensors": self.lagging}
        return {name: average for name, average in named.items() if average is not None}


def _whole(tensor: Tensor) -> Tensor:
    """Return the full tensor on the CPU, gathered if it is sharded. Every process must call it."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().to("cpu", copy=True).contiguous()


def _optimizer_tensors(state: State) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: f"policy.{name}" for name, parameter in state.policy.items()}
    names |= {parameter: f"objective.{name}" for name, parameter in state.objective.named_parameters()}
    tensors = {}
    for parameter, values in state.optimizer.state.items():
        for key, value in values.items():
            tensors[f"{names[parameter]}|{key}"] = _whole(value) if isinstance(value, Tensor) else torch.tensor(float(value))
    return tensors


def save(state: State, folder: Path, main: bool = True) -> None:
    """Write ``folder``: files first, their hashes last, under a temporary name that is renamed when all is on disk."""
    files: dict[str, dict[str, Tensor]] = {
        "policy.safetensors": {name: _whole(value) for name, value in state.policy.items()},
        "objective.safetensors": {name: _whole(value) for name, value in state.objective.state_dict().items()},
        "optimizer.safetensors": _optimizer_tensors(state),
    }
    for file, average in state.averages.items():
        files[file] = {name: _whole(value) for name, value in average.average.items()}
    if main:
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in files.items():
            save_file(tensors, temporary / name)
        (temporary / "progress.json").write_text(json.dumps(state.progress))
        hashes = {path.name: _hash(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(hashes, indent=1))
        for path in temporary.iterdir():
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
        _sync(folder.parent)
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def problem(folder: Path) -> str | None:
    """Return why a checkpoint cannot be used, or None if it is whole."""
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error})"
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _hash(path) != expected:
            return f"{name} is damaged"
    return None


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint below ``folder`` and one message per damaged one that was passed over."""
    messages: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        reason = problem(path)
        if reason is None:
            return path, messages
        messages.append(f"checkpoint {path.name} is not usable: {reason}; falling back to the one before")
    return None, messages


@torch.no_grad()
def load(state: State, folder: Path) -> None:
    """Put a whole checkpoint's values into the live objects (in place)."""
    for name, value in load_file(folder / "policy.safetensors").items():
        _fill(state.policy[name], value)
    state.objective.load_state_dict(load_file(folder / "objective.safetensors"))
    for file, average in state.averages.items():
        for name, value in load_file(folder / file).items():
            _fill(average.average[name], value)
    parameters = {f"policy.{name}": parameter for name, parameter in state.policy.items()}
    parameters |= {f"objective.{name}": parameter for name, parameter in state.objective.named_parameters()}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        owner, key = name.rsplit("|", 1)
        parameter = parameters[owner]
        sharded = value.shape == parameter.shape and hasattr(parameter, "placements")
        state.optimizer.state[parameter][key] = _like(parameter, value) if sharded else value.to(_place(key, parameter))
    state.progress.clear()
    state.progress.update(json.loads((folder / "progress.json").read_text()))


@torch.no_grad()
def load_policy(policy: nn.Module, folder: Path) -> None:
    """Put only the trained weights of a whole checkpoint into a freshly built policy: the moving average where one was kept."""
    average = folder / "average.safetensors"
    parameters = dict(policy.named_parameters())
    for name, value in load_file(average if average.exists() else folder / "policy.safetensors").items():
        _fill(parameters[name], value)


def _place(key: str, parameter: Tensor) -> torch.device:
    """AdamW keeps its step counter on the CPU."""
    return torch.device("cpu") if key == "step" else parameter.device


def _like(target: Tensor, value: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(target.device, target.dtype)
    return distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value


def _fill(target: Tensor, value: Tensor) -> None:
    target.copy_(_like(target, value))


def retain(folder: Path, keep_last: int, keep: str | None) -> None:
    """Delete all but the last ``keep_last`` checkpoints and the one named ``keep`` (the best)."""
    paths = sorted(folder.glob("step-*"))
    for path in paths[:-keep_last] if keep_last else paths:
        if path.name != keep:
            shutil.rmtree(path, ignore_errors=True)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
