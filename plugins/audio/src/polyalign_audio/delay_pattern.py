"""How K codebooks become steps of a decoder: codebook k of a frame is said k steps after codebook 0 of that frame.

Source: MusicGen, arXiv 2306.05284, section 2.2 ("delay" pattern).
"""

from __future__ import annotations

import torch
from torch import LongTensor, Tensor


def delayed(codes: Tensor, pad: int) -> Tensor:
    """Return codes ``[..., K, F]`` as columns of decoder steps, ``[..., K, F + K - 1]``, with ``pad`` where nothing is said."""
    *batch, books, frames = codes.shape
    laid_out = codes.new_full((*batch, books, frames + books - 1), pad)
    for book in range(books):
        laid_out[..., book, book : book + frames] = codes[..., book, :]
    return laid_out


def undelayed(columns: Tensor) -> Tensor:
    """Return the codes ``[..., K, F]`` of columns ``[..., K, F + K - 1]``."""
    books = columns.shape[-2]
    frames = columns.shape[-1] - books + 1
    return torch.stack([columns[..., book, book : book + frames] for book in range(books)], -2)


def said(step: int, books: int, frames: int) -> Tensor:
    """Return which codebooks say something at a step, ``[K]`` bool."""
    frame = step - torch.arange(books)
    return (frame >= 0) & (frame < frames)


def order(books: int, frames: int) -> tuple[LongTensor, LongTensor]:
    """Return (step, codebook) of each decision, ``[K F]`` each, in the order in which a decoder takes them."""
    steps = torch.arange(frames + books - 1)[:, None]
    frame = steps - torch.arange(books)
    step, book = ((frame >= 0) & (frame < frames)).nonzero(as_tuple=True)
    return step, book  # type: ignore[return-value]


def flattened(codes: Tensor) -> Tensor:
    """Return codes ``[K, F]`` as decisions ``[K F]``, in `order`."""
    step, book = order(*codes.shape)
    return codes[book, step - book]


def gathered(decisions: Tensor, books: int) -> Tensor:
    """Return the codes ``[K, F]`` of decisions ``[K F]``."""
    frames = len(decisions) // books
    step, book = order(books, frames)
    codes = decisions.new_empty(books, frames)
    codes[book, step - book] = decisions
    return codes
