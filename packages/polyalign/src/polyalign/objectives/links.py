"""The links of pairwise objectives: from the scaled rewards of two responses to the loss of one preference.

Every link is elementwise: ``better`` and ``worse`` are rewards times beta, ``[E, D]``, edge margins already taken off (half
from each side, so that their difference z asks for ``z >= margin`` before the shift). ``config`` is the objective's own.

A denoising draw estimates an ELBO difference with noise, and links are averaged over draws. Convex links (sigmoid, hinge, ipo,
nca_pair, bco_pair, sppo_hard) then bound the loss at the expected rewards from above; ipo and sppo_hard add the variance over
draws, so their target is nominal. The others (robust, exo_pair, discopop, apo_zero, apo_down) bound nothing with one draw:
there they are nominal, and what their papers prove is about exact likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.config import (
    APODownConfig,
    APOZeroConfig,
    BCOPairConfig,
    DiscoPOPConfig,
    DPOConfig,
    EXOPairConfig,
    HingeConfig,
    IPOConfig,
    NCAPairConfig,
    RobustConfig,
    SPPOHardConfig,
)

Link = Callable[[Tensor, Tensor, Any], Tensor]


def smoothed_sigmoid(z: Tensor, smoothing: float | Tensor) -> Tensor:
    """Return ``-(1 - e) log sigma(z) - e log sigma(-z)``: DPO, with e > 0 cDPO (Mitchell 2023)."""
    return -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)


def sigmoid(better: Tensor, worse: Tensor, config: DPOConfig) -> Tensor:
    return smoothed_sigmoid(better - worse, config.label_smoothing)


def hinge(better: Tensor, worse: Tensor, config: HingeConfig) -> Tensor:
    """Return ``max(0, 1 - z)``: SLiC on the DPO margin."""
    return torch.relu(1 - (better - worse))


def ipo(better: Tensor, worse: Tensor, config: IPOConfig) -> Tensor:
    """Return ``(d - 1 / (2 beta))^2`` with ``z = beta d``."""
    return ((better - worse - 0.5) / config.beta) ** 2


def robust(better: Tensor, worse: Tensor, config: RobustConfig) -> Tensor:
    """Return ``(-(1 - e) log sigma(z) + e log sigma(-z)) / (1 - 2e)``; may be negative."""
    z, smoothing = better - worse, config.label_smoothing
    return (-(1 - smoothing) * F.logsigmoid(z) + smoothing * F.logsigmoid(-z)) / (1 - 2 * smoothing)


def exo_pair(better: Tensor, worse: Tensor, config: EXOPairConfig) -> Tensor:
    """Return ``KL((sigma(z), sigma(-z)) || (1 - e, e))``: 0 at ``z = log((1 - e) / e)``, its only minimum."""
    z, smoothing = better - worse, torch.tensor(config.label_smoothing, dtype=better.dtype, device=better.device)
    right = torch.sigmoid(z) * (F.logsigmoid(z) - torch.log1p(-smoothing))
    wrong = torch.sigmoid(-z) * (F.logsigmoid(-z) - torch.log(smoothing))
    return right + wrong


def discopop(better: Tensor, worse: Tensor, config: DiscoPOPConfig) -> Tensor:
    """Return ``sigma(-z/tau) * -log sigma(z) + sigma(z/tau) * exp(-z)``."""
    z = better - worse
    # As one exponential: the product is 0 * inf for very negative z. tau < 1 keeps the exponent below 0 there.
    exponential = torch.exp(F.logsigmoid(z / config.tau) - z)
    return torch.sigmoid(-z / config.tau) * -F.logsigmoid(z) + exponential


def nca_pair(better: Tensor, worse: Tensor, config: NCAPairConfig) -> Tensor:
    """Return ``-log sigma(b) - 1/2 log sigma(-b) - 1/2 log sigma(-w)``."""
    return -F.logsigmoid(better) - 0.5 * F.logsigmoid(-better) - 0.5 * F.logsigmoid(-worse)


def bco_pair(better: Tensor, worse: Tensor, config: BCOPairConfig) -> Tensor:
    """Return ``-log sigma(b) - log sigma(-w)``; the baseline is already off both."""
    return -F.logsigmoid(better) - F.logsigmoid(-worse)


def sppo_hard(better: Tensor, worse: Tensor, config: SPPOHardConfig) -> Tensor:
    """Return ``(x_b - 1 / (2 beta))^2 + (x_w + 1 / (2 beta))^2`` with ``b = beta x_b``."""
    return ((better - 0.5) / config.beta) ** 2 + ((worse + 0.5) / config.beta) ** 2


def apo_zero(better: Tensor, worse: Tensor, config: APOZeroConfig) -> Tensor:
    """Return ``1 - sigma(b) + sigma(w)``."""
    return torch.sigmoid(-better) + torch.sigmoid(worse)


def apo_down(better: Tensor, worse: Tensor, config: APODownConfig) -> Tensor:
    """Return ``sigma(b) + 1 - sigma(b - w)``."""
    return torch.sigmoid(better) + torch.sigmoid(worse - better)


LINKS: dict[str, Link] = {
    link.__name__: link
    for link in (sigmoid, hinge, ipo, robust, exo_pair, discopop, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down)
}
