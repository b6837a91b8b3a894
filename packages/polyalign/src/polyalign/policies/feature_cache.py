"""Features of frozen encoders (latents, text embeddings), computed once and kept on disk by content."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyalign.errors import TrainingError

Features = dict[str, Tensor]


class FeatureCache:
    """Named tensors by key: in memory, and in a folder once `attach` gave one.

    Every entry is a safetensors file of its own, written under a temporary name and renamed: a killed fill loses only the
    entry it was writing, and several processes may fill one folder. Picklable: loader workers carry the folder, not
    the tensors. ``memory`` bounds the bytes held in memory when there is a folder to read them from again.
    """

    def __init__(self, folder: Path | None = None, memory: int = 512 * 2**20) -> None:
        self.folder, self.memory = folder, memory
        self._held: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    def attach(self, folder: Path) -> None:
        """Keep entries in ``folder`` from now on, also those that are only in memory so far."""
        if self.folder == folder:
            return
        self.folder = folder
        for key, features in list(self._held.items()):
            if not self.path(key).exists():
                self._write(key, features)

    def path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return key in self._held or (self.folder is not None and self.path(key).exists())

    def load(self, key: str) -> Features:
        """Return the tensors of one entry. Raises `KeyError` if there is none, `TrainingError` if its file is damaged."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        if self.folder is None or not self.path(key).exists():
            raise KeyError(key)
        try:
            features = load_file(self.path(key))
        except SafetensorError as error:
            message = f"{self.path(key)} is not readable as safetensors ({error}); delete it and start again"
            raise TrainingError(message) from error
        self._hold(key, features)
        return features

    def store(self, key: str, features: Mapping[str, Tensor], source: str) -> None:
        """Keep one entry. Raises `TrainingError` naming ``source`` if a value is not finite: it would poison every step."""
        entry = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in features.items()}
        for name, tensor in entry.items():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                raise TrainingError(
                    f"the encoder gave {bad} non-finite values in {name!r} of {source}; run it in float32, or check the input"
                )
        if self.folder is not None:
            self._write(key, entry)
        self._hold(key, entry)

    def clear_memory(self) -> None:
        """Forget what is held in memory; files stay."""
        self._held.clear()
        self._bytes = 0

    def _write(self, key: str, features: Features) -> None:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        save_file(features, temporary)
        temporary.replace(path)

    def _hold(self, key: str, features: Features) -> None:
        if key not in self._held:
            self._bytes += _size(features)
        self._held[key] = features
        while self.folder is not None and self._bytes > self.memory and len(self._held) > 1:
            self._bytes -= _size(self._held.popitem(last=False)[1])

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.folder is not None:
            state["_held"], state["_bytes"] = OrderedDict(), 0
        return state


def _size(features: Features) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in features.values())
