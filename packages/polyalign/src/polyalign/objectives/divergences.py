"""f-DPO: what a log-ratio is worth under other divergences than DPO's reverse KL, in forms that survive large log-ratios."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.config import Divergence

# exp(40) squared and divided by 0.1 squared (IPO's link) still is a float32; beyond it a score is constant, its gradient 0.
LARGEST_EXPONENT = 40.0


def implicit_reward(log_ratio: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    """Return ``g(X)`` elementwise for log-ratios X: the reward, over beta, whose best policy has these log-ratios.

    Maximising ``E[r] - beta * D_f(pi || pi_ref)`` makes ``r = beta * f'(pi / pi_ref) + const`` (Wang et al. 2023,
    arXiv 2309.16240); with ``u = pi / pi_ref`` and constants chosen so that g(0) = 0:

    - ``reverse_kl``, f = u log u: ``X``. DPO.
    - ``forward_kl``, f = -log u: ``1 - exp(-X)``, at most 1.
    - ``js``, f = u log u - (u + 1) log((u + 1) / 2): ``log 2 + log sigma(X)``, at most log 2.
    - ``alpha`` in (0, 1), f = (u^(1-a) - (1-a) u - a) / (a (a - 1)): ``(1 - exp(-a X)) / a``, at most 1 / a.

    Bounded above: a winner far above the reference earns nothing more, a loser below it is still pushed down.
    TRL's coefficient is 1 - alpha, and it clamps exponents at 80 (alpha only) where we clamp at 40.
    """
    match divergence:
        case "reverse_kl":
            return log_ratio
        case "forward_kl":
            return power(log_ratio, 1.0)
        case "js":
            return math.log(2) + F.logsigmoid(log_ratio)
        case "alpha":
            return power(log_ratio, alpha)


def power(log_u: Tensor, alpha: float) -> Tensor:
    """Return ``(1 - u^-alpha) / alpha`` elementwise from ``log u``; alpha 0 is its limit ``log u``."""
    if alpha == 0:
        return log_u
    return -torch.expm1((-alpha * log_u).clamp(max=LARGEST_EXPONENT)) / alpha
