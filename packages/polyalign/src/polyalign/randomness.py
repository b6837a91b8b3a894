"""Keyed randomness: every draw is a function of its key, never of the order in which work happens to be done."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def keyed_seed(*key: str | int) -> int:
    """Return a 63-bit seed from (run seed, draw key, epoch, draw index ...) by blake2b."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator seeded by the key. Draw on the CPU and move: devices do not share streams."""
    import torch

    return torch.Generator().manual_seed(keyed_seed(*key))
