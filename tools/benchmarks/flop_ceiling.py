"""How much faster a step could become if multiplications were all that takes time: the ceiling of a speed-up.

One pass through the decoder costs, with one multiplication and one addition for each pair of factors,

    2 * (weights of its layers) * tokens  +  4 * hidden * layers * cells  +  2 * hidden * vocabulary * scored

where ``tokens`` are all positions of the batch, padding included; ``cells`` are the (query, key) pairs that attend to each
other; ``scored`` are the response tokens, which alone meet the vocabulary. A training step under LoRA is

- forward (1); with checkpointing once more for the layers and their attention (1);
- backward (1 for weights, since frozen weights need no gradients of their own; 2 for attention, both of whose factors do);
- a forward pass of the reference (1), unless its scores are cached.

A tower costs ``2 * (weights of its layers) * patches + 4 * hidden * layers * patches^2`` per picture and pass. TRL runs it for
chosen and rejected in policy and reference (4 passes per pair); under checkpointing with LoRA it also recomputes it and
back-propagates through it for both rows (2 + 2 more). LoRA's own products, norms, softmax, data and optimizer are left out.
A kernel that computes masked cells and drops them stays below the ceiling, and so does small work that runs at a lower rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from random_models import VOCABULARY, Shape


@dataclass(frozen=True)
class Work:
    """What one contender sends through the model in one step."""

    tokens: int
    cells: int
    scored: int
    tower_passes: float  # forward-equivalents, over all pictures of the step


@dataclass(frozen=True)
class Passes:
    """How often the decoder's layers, its attention and its head run, in units of a forward pass."""

    layers: int
    attention: int
    head: int

    @classmethod
    def training(cls, checkpointing: bool, reference: bool) -> Passes:
        extra = int(checkpointing) + int(reference)
        return cls(layers=2 + extra, attention=3 + extra, head=2 + int(reference))


FORWARD = Passes(1, 1, 1)


def attended(prompt: int, answers: Sequence[int], shared: bool) -> int:
    """Return the (query, key) pairs of one prompt with its answers, causal, each answer blind to the others."""
    once = prompt * (prompt + 1) // 2
    beyond = sum(prompt * length + length * (length + 1) // 2 for length in answers)
    return once * (1 if shared else len(answers)) + beyond


def flops(shape: Shape, work: Work, passes: Passes) -> float:
    hidden, inner = shape.hidden, shape.hidden * 11 // 4
    weights = shape.layers * (3 * hidden * hidden + 3 * hidden * inner)  # queries and output in full, keys and values in half
    decoder = (
        2 * weights * work.tokens * passes.layers
        + 4 * hidden * shape.layers * work.cells * passes.attention
        + 2 * hidden * VOCABULARY * work.scored * passes.head
    )
    patches, wide = shape.picture_tokens, shape.tower_hidden
    tower = shape.tower_layers * (2 * 12 * wide * wide * patches + 4 * wide * patches * patches)
    return float(decoder + tower * work.tower_passes)
