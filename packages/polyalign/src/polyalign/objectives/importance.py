"""Importance ratios and what is made of them: the one place where new likelihoods meet old ones and the reference's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def log_ratios_to_old(log_probs: Tensor, old: Tensor, mask: Tensor, level: Literal["token", "sequence", "product"]) -> Tensor:
    """Return log(new / old), with gradient: per decision ``[N, D, T]``, or per response ``[N, D, 1]``.

    "sequence" is the mean over decisions, the log of a geometric mean (GSPO, arXiv 2507.18071, eq. 7); "product" is the sum,
    the ratio of the whole response. 0 at padding.
    """
    gap = torch.where(mask, log_probs - old, 0.0)
    if level == "token":
        return gap
    summed = gap.sum(-1, keepdim=True)
    return summed if level == "product" else summed / mask.sum(-1, keepdim=True).clamp(min=1)


def clipped(ratio: Tensor, advantages: Tensor, low: float, high: float, most: float | None = None) -> Tensor:
    """Return ``-min(ratio A, clip(ratio, 1 - low, 1 + high) A)``, elementwise (PPO, arXiv 1707.06347, eq. 7).

    With ``most`` the ratio counts up to it where A is negative: dual-clip PPO (arXiv 1912.09729, eq. 5).
    """
    bounded = ratio if most is None else ratio.clamp(max=most)
    return -torch.minimum(bounded * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def weighted(ratio: Tensor, log_probs: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return ``-sg(clip(ratio, 1 - low, 1 + high)) A log pi``, elementwise: a clipped decision still learns (CISPO,
    arXiv 2506.13585, eq. 4 and 5)."""
    return -ratio.detach().clamp(1 - low, 1 + high) * advantages * log_probs


def outside(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return where clipping takes effect (bool): the ratio has left its interval on the side that the advantage favours."""
    return ((ratio < 1 - low) & (advantages < 0)) | ((ratio > 1 + high) & (advantages > 0))


def divergence(log_probs: Tensor, reference: Tensor, mask: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """Return an estimate of KL(pi || pi_ref) per decision, 0 at padding, from decisions that pi drew.

    With ``x = log pi - log pi_ref``: k1 is ``x``, k2 ``x^2 / 2``, k3 ``exp(-x) - 1 + x``. k1 and k3 are unbiased in value.
    Source: Schulman 2020, "Approximating KL divergence".
    """
    gap = torch.where(mask, log_probs - reference, 0.0)
    if estimator == "k1":
        return gap
    return gap.square() / 2 if estimator == "k2" else torch.expm1(-gap) + gap
