"""What heads read off a token model: its hidden state after a response, after its prompt, and after each scored token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import BoolTensor, Tensor

from polyalign.policies.logprobs import scatter

FEATURES = frozenset({"hidden", "prompt_hidden", "states"})
Lines = tuple[Tensor, Tensor]


def token_features(
    want: frozenset[str], hidden: Tensor, tensors: dict[str, Tensor], mask: Tensor, lines: Callable[[], Lines]
) -> dict[str, Tensor]:
    """Return the wanted features, float32, of last-layer states ``[R, L, H]``. ``mask`` ``[N, T]``: which tokens are scored.

    Read at real positions only, never at padding, whatever side a row is padded on:

    - ``hidden`` ``[N, H]``: at the row's last real token;
    - ``prompt_hidden`` ``[N, H]``: just before the first scored token, which is the prompt's last; of an empty response `hidden`;
    - ``states`` ``[N, T, H]``: having read each scored token (and media that follow it), 0 at padding; along with
      ``step_ends`` ``[N, T]``, for which ``lines()`` returns what `line_tokens` does.
    """
    found = {}
    row, last, predictors = tensors["row"], tensors["last"], tensors["predictors"]
    after = torch.cat([predictors, last[:, None]], 1)  # [N, T + 1]; the state after a token predicts the next one
    if "hidden" in want:
        found["hidden"] = hidden[row, last].float()
    if "prompt_hidden" in want:
        found["prompt_hidden"] = hidden[row, torch.where(mask.any(1), after[:, 0], last)].float()
    if "states" in want:
        final = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
        readers = torch.where(final, last[:, None], after[:, 1:])
        found["states"] = scatter(hidden[row[:, None].expand_as(mask)[mask], readers[mask]].float(), mask)
        newline, content = lines()
        found["step_ends"] = step_ends(newline[tensors["targets"]], content[tensors["targets"]], mask)
    return found


def line_tokens(tokenizer: Any, vocabulary: int) -> Lines:
    """Return (newline, content), ``[V]`` bool each: which tokens hold a line break, and which hold more than white space.
    Special tokens hold neither."""
    special = set(tokenizer.all_special_ids)
    known = min(vocabulary, len(tokenizer))
    texts = ["" if number in special else tokenizer.decode([number]) for number in range(known)]
    texts += [""] * (vocabulary - known)  # rows of the embedding that no token uses
    return torch.tensor(["\n" in text for text in texts]), torch.tensor([bool(text.strip()) for text in texts])


def step_ends(newline: Tensor, content: Tensor, mask: Tensor) -> BoolTensor:
    """Return at which decisions a step ends, ``[N, T]`` bool: at a line break, and at the last decision of a response.

    ``newline`` and ``content`` ``[N, T]`` say what each decision holds, ``mask`` ``[N, T]`` which are real. A line without
    content is no step: neither a blank one, nor what is left after the last line break when that is only an end-of-text.
    """
    count = mask.sum(1, keepdim=True)
    place = torch.arange(mask.shape[1], device=mask.device)
    ends = mask & (newline | (place == count - 1))
    seen = (content & mask).cumsum(1)  # how much content up to here
    at_ends = torch.where(ends, seen, 0).cummax(1).values if mask.shape[1] else seen
    before = torch.nn.functional.pad(at_ends, (1, 0))[:, :-1]  # up to the end before
    return ends & (seen > before)  # type: ignore[return-value]
