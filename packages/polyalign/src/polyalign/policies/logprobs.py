"""From logits to the few numbers an objective reads, one position at a time: any chunk of positions can be reduced alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import LongTensor, Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**25  # 128 MB in float32


def reduce_logits(
    logits: Tensor,
    targets: LongTensor,
    temperature: Tensor,
    *,
    entropy: bool = False,
    mean_logit: bool = False,
    log_sum_squares: bool = False,
    target_ids: LongTensor | None = None,
    target_values: Tensor | None = None,
) -> dict[str, Tensor]:
    """Reduce ``logits`` ``[P, V]`` at P scored positions; every result is float32 and indexed by position.

    - ``log_probs`` ``[P]``: log-softmax of ``logits / temperature`` at ``targets`` ``[P]``;
    - ``entropy`` ``[P]`` in nats, and ``mean_logit`` ``[P]``, the mean of the scaled logits over the vocabulary, if asked;
    - ``log_sum_squares`` ``[P]``, without gradient: the log of the sum over the vocabulary of squared probabilities, if asked;
    - with ``target_ids`` and ``target_values`` ``[P, K]``: ``target_log_probs`` ``[P, K]``, the log-probabilities of those
      ids, ``target_rest`` ``[P]``, the log of what all other ids hold together, and ``token_targets`` ``[P]``, the sum of
      the log-probabilities weighted by the values: minus the cross-entropy to a teacher whose probabilities the values are.

    Call it outside autocast: the softmax of a large vocabulary is not safe in bfloat16.
    """
    scaled = logits.float() / temperature.float()[:, None]
    normaliser = torch.logsumexp(scaled, -1)  # [P]
    found = {"log_probs": scaled.gather(1, targets[:, None]).squeeze(1) - normaliser}
    if entropy:
        expected_logit = (torch.softmax(scaled, -1) * scaled.masked_fill(scaled == -torch.inf, 0.0)).sum(-1)
        found["entropy"] = normaliser - expected_logit
    if mean_logit:
        found["mean_logit"] = scaled.mean(-1)
    if log_sum_squares:
        found["log_sum_squares"] = (torch.logsumexp(2 * scaled.detach(), -1) - 2 * normaliser).detach()
    if target_ids is not None and target_values is not None:
        found["target_log_probs"] = scaled.gather(1, target_ids) - normaliser[:, None]
        found["target_rest"] = log_sum_without(scaled, target_ids) - normaliser
        found["token_targets"] = (target_values.float() * found["target_log_probs"]).sum(-1)
    return found


def log_sum_without(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the log of the sum of exponentials of all logits but those of ``ids`` ``[P, K]``, ``[P]``: of logits ``[P, V]``.

    Summed and not subtracted from the whole, so that a small rest keeps its digits. Where no id is left it is the most
    negative finite number, whose exponential and gradient are 0.
    """
    return logits.scatter(1, ids, torch.finfo(logits.dtype).min).logsumexp(-1)


def reduce_to_likeliest(logits: Tensor, ids: Tensor | None, count: int) -> dict[str, Tensor]:
    """Reduce ``logits`` ``[P, V]`` to a distribution over few tokens and one bucket for all others, in float32.

    ``ids`` ``[P, K]``: the ``count`` likeliest ids, likeliest first, or those that are given. ``log_probs`` ``[P, K + 1]``: their
    log-probabilities, and last the log of what all other ids hold together.
    """
    exact = logits.float()
    if ids is None:
        ids = exact.topk(count, -1).indices
    pieces = torch.cat([exact.gather(1, ids), log_sum_without(exact, ids)[:, None]], -1)
    return {"ids": ids, "log_probs": pieces - torch.logsumexp(exact, -1, keepdim=True)}


def in_chunks(reduce: Callable[..., dict[str, Tensor]], size: int, states: Tensor, *inputs: Tensor | None) -> dict[str, Tensor]:
    """Return what ``reduce(states, *inputs)`` returns, ``size`` of the P positions at a time.

    With more than one chunk and gradients on, a chunk's logits are computed again in the backward pass instead of kept, so
    memory holds the logits of one chunk whatever P is. ``states`` ``[P, H]``; every input is ``[P, ...]`` or None.
    """
    if len(states) <= size:
        return reduce(states, *inputs)
    pieces = []
    for start in range(0, len(states), size):
        chunk = [None if value is None else value[start : start + size] for value in (states, *inputs)]
        pieces.append(checkpoint(reduce, *chunk, use_reentrant=False) if torch.is_grad_enabled() else reduce(*chunk))
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Return ``values`` ``[P, ...]`` laid out as ``[N, T, ...]``: row by row where ``mask`` ``[N, T]`` is True, else 0."""
    full = values.new_zeros(*mask.shape, *values.shape[1:])
    full[mask] = values
    return full
