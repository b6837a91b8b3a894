"""Bradley-Terry with ties: minus log-probabilities of a win and of a tie, as functions of the difference of two rewards."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rao_kupper_win(margin: Tensor, theta: float) -> Tensor:
    """Return ``-log P(first wins)``, with ``P = p / (p + theta q)`` for ``margin = log p - log q``; elementwise.

    Rao and Kupper 1967, eq. 2.5. Theta 5 is the loss of VideoReward (arXiv 2501.13918).
    """
    return -F.logsigmoid(margin - math.log(theta))


def rao_kupper_tie(margin: Tensor, theta: float) -> Tensor:
    """Return ``-log P(tie)``, ``P = (theta^2 - 1) p q / ((p + theta q) (q + theta p))``; elementwise."""
    return rao_kupper_win(margin, theta) + rao_kupper_win(-margin, theta) - math.log(theta**2 - 1)


def davidson_win(margin: Tensor, nu: float) -> Tensor:
    """Return ``-log P(first wins)``, ``P = p / (p + q + nu sqrt(p q))`` for ``margin = log p - log q``; elementwise.

    Davidson 1970, eq. 2.3 and 2.4.
    """
    return davidson_tie(margin, nu) + math.log(nu) - margin / 2


def davidson_tie(margin: Tensor, nu: float) -> Tensor:
    """Return ``-log P(tie)``, ``P = nu sqrt(p q) / (p + q + nu sqrt(p q))``; elementwise."""
    half = margin / 2
    return torch.stack([half, -half, torch.full_like(half, math.log(nu))]).logsumexp(0) - math.log(nu)
