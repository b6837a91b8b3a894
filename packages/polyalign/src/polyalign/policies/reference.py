"""The frozen twin of a policy: adapters switched off, a frozen copy, or scores kept on disk."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save

from polyalign.errors import TrainingError
from polyalign.policies.adapters import trainable
from polyalign.policies.base import Batch, Policy, Scores, evaluating
from polyalign.records.atomic import atomic_write
from polyalign.training.config import ReferenceConfig


class Reference(Protocol):
    def __call__(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        """Return detached scores of the starting weights, without dropout, with the extras that ``want`` names."""
        ...


class AdaptersOff:
    """The base model under the adapters: no second copy in memory."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        with evaluating(self.policy), torch.no_grad(), self.policy.as_reference():
            return self.policy(batch, want).detach()  # type: ignore[no-any-return]


class FrozenCopy:
    """A deep copy of the policy, taken before training starts. Weights that do not train are shared, not copied."""

    def __init__(self, policy: Policy) -> None:
        frozen = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
        self.policy = copy.deepcopy(policy, memo=dict(frozen)).eval().requires_grad_(False)

    def __call__(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        with torch.no_grad():
            return self.policy(batch, want).detach()  # type: ignore[no-any-return]


class CachedScores:
    """Scores each distinct (sample, draws) once with ``inner`` and keeps the result on disk.

    Keys are ``batch.cache_keys``; the file name carries the policy's fingerprint, so scores of other weights are never
    read. Each process writes its own file and reads everybody's.
    """

    def __init__(self, inner: Reference, folder: Path, fingerprint: str, rank: int = 0) -> None:
        self.inner, self.folder, self.rank = inner, folder, rank
        self.prefix = f"reference-{fingerprint[:40]}"
        self.values: dict[str, torch.Tensor] = {}
        self.hits = self.misses = 0
        self._unsaved = False
        for path in sorted(folder.glob(f"{self.prefix}-*.safetensors")):
            self._read(path)

    def __call__(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        if want:
            raise TrainingError(
                f"reference.cache keeps log-probabilities, but this objective wants {', '.join(sorted(want))} too; turn it off"
            )
        if batch.cache_keys is None:
            raise TrainingError(
                "reference.cache is on, but this policy's draws change every epoch; set policy.bank to a number of fixed draws"
            )
        if all(key in self.values for key in batch.cache_keys):
            self.hits += 1
            return self._restore(batch)
        self.misses += 1
        scores = self.inner(batch)
        for row, key in enumerate(batch.cache_keys):  # first come stays: a resumed run then sees the very same values
            self.values.setdefault(key, scores.log_probs[row][scores.mask[row]].cpu())
        self._unsaved = True
        return self._restore(batch)

    def _restore(self, batch: Batch) -> Scores:
        assert batch.cache_keys is not None
        log_probs = torch.zeros(batch.mask.shape, device=batch.mask.device)
        log_probs[batch.mask] = torch.cat([self.values[key] for key in batch.cache_keys]).to(batch.mask.device)
        return Scores(log_probs, batch.mask, batch.kind)

    def save(self) -> None:
        """Write this process's scores (temporary name, then rename). Called at every checkpoint."""
        if not self._unsaved:
            return
        path = self.folder / f"{self.prefix}-{self.rank}.safetensors"
        keys = list(self.values)
        tensors = {
            "values": torch.cat([self.values[key] for key in keys]),
            "lengths": torch.tensor([len(self.values[key]) for key in keys]),
        }
        with atomic_write(path) as file:
            file.write(save(tensors, metadata={"keys": json.dumps(keys)}))
        self._unsaved = False

    def _read(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            keys = json.loads(file.metadata()["keys"])
            pieces = file.get_tensor("values").split(file.get_tensor("lengths").tolist())
        self.values.update(zip(keys, pieces, strict=True))


def build_reference(
    policy: Policy, config: ReferenceConfig, cache: Path, rank: int = 0, precision: str = "fp32"
) -> Reference | None:
    """Return the reference that the recipe asks for; None for ``kind: none``. Scores of another precision are other scores."""
    kind = config.kind
    if kind == "auto":
        kind = "adapters_off" if policy.has_adapters else "frozen_copy"
    if kind == "none":
        return None
    if config.run is not None:
        kind = "frozen_copy"
    if kind == "adapters_off" and not policy.has_adapters:
        raise TrainingError("reference.kind is adapters_off, but the policy has no adapters; set policy.lora or use frozen_copy")
    reference: Reference = AdaptersOff(policy) if kind == "adapters_off" else FrozenCopy(policy)
    origin = f"{precision}-"
    if config.run is not None:
        assert isinstance(reference, FrozenCopy)
        origin = f"{_take_weights(reference.policy, set(trainable(policy)), Path(config.run))}-{origin}"
    return CachedScores(reference, cache, f"{origin}{policy.fingerprint()}", rank) if config.cache else reference


def _take_weights(copied: Policy, own: set[str], folder: Path) -> str:
    """Put the trained weights of the run in ``folder`` into a frozen copy, whose ``own`` parameters are not shared with the
    policy; return a short hash of them."""
    from polyalign.training import checkpoint  # late: only here does a reference come from a run

    path, messages = checkpoint.newest(folder / "checkpoints")
    if path is None:
        raise TrainingError(f"reference.run: {str(folder)!r} holds no usable checkpoint. {' '.join(messages)}".rstrip())
    with safe_open(path / "policy.safetensors", framework="pt") as file:
        strange = sorted(set(file.keys()) - own)
    if strange:
        raise TrainingError(
            f"reference.run: {str(folder)!r} trained {strange[0]!r}, which this policy does not train; a reference from another "
            "run needs the same policy with the same adapters"
        )
    checkpoint.load_policy(copied, path)
    return hashlib.blake2b((path / checkpoint.MANIFEST).read_bytes(), digest_size=6).hexdigest()
