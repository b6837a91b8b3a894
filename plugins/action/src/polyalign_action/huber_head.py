"""Real-valued actions whose negative log-likelihood is Huber's loss: UniAct's loss, as a distribution that can be sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polyalign.policies.continuous import ActionHead


class HuberHead(ActionHead):
    """Independent actions with density ``exp(-huber(r) / s) / Z``, where r is the distance from ``outputs`` ``[P, A]`` in
    ``units`` ``[A]`` (half-widths of the action's range), huber(r) is r^2 / 2 up to ``delta`` and grows linearly from there, and
    the scale s ``[A]`` is the same in every state: normal near the middle, exponential in the tails (Huber 1964).

    Times s and but for a constant the negative log-likelihood is UniAct's loss (delta 0.1). With ``learned`` scales a body whose
    actions are easy to tell takes over what several learn together: its scale shrinks, and its errors weigh ever more. No
    squashing: what is scored is the action before an environment clips it.
    """

    units: Tensor

    def __init__(self, units: Sequence[float], delta: float, initial_std: float, learned: bool = True) -> None:
        super().__init__()
        self.size, self.delta = len(units), delta
        self.register_buffer("units", torch.tensor(units), persistent=False)
        self.log_scale = nn.Parameter(torch.full((len(units),), 2 * math.log(initial_std)), requires_grad=learned)

    def log_probs(self, outputs: Tensor, actions: Tensor) -> Tensor:
        loss = nn.functional.huber_loss(
            outputs.float() / self.units, actions.float() / self.units, reduction="none", delta=self.delta
        )
        return -(loss * (-self.log_scale).exp() + self._pieces()[2] + self.units.log()).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """The mean of the loss over its scale, in closed form, plus log Z."""
        middle, tails, log_z = self._pieces()
        edge = self.delta**2 / 2 * (-self.log_scale).exp()  # the loss over its scale where the tails begin
        mean = (middle / 2 - self.delta * (-edge).exp() + tails * (1 + edge)) * (-log_z).exp()
        return (mean + log_z + self.units.log()).sum().expand(len(outputs))

    def noise(self, steps: int, generator: torch.Generator) -> Tensor:
        return torch.rand(steps, self.size, generator=generator, dtype=torch.float64)

    def draw(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Invert the cumulative distribution at ``noise`` ``[P, A]`` on [0, 1)."""
        scale = self.log_scale.double().exp()
        middle, tails, _ = (piece.double() for piece in self._pieces())
        centred = 2 * noise - 1  # its size: the mass nearer to the middle than this draw
        mass = centred.abs() * (middle + tails)
        inner = torch.special.erfinv((mass / (2 * math.pi * scale).sqrt()).clamp(max=1 - 1e-12)) * (2 * scale).sqrt()
        left = ((middle + tails - mass) / tails).clamp(1e-12, 1)  # share of the tails beyond this draw
        outer = self.delta - scale / self.delta * left.log()
        distance = torch.where(mass < middle, inner.clamp(max=self.delta), outer)
        return outputs + (centred.sign() * distance).float() * self.units

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs

    def _pieces(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (mass of the middle, mass of both tails, log of their sum), ``[A]`` each, before normalisation."""
        scale = self.log_scale.exp()
        middle = (2 * math.pi * scale).sqrt() * torch.erf(self.delta / (2 * scale).sqrt())
        tails = 2 * scale / self.delta * (-(self.delta**2) / (2 * scale)).exp()
        return middle, tails, (middle + tails).log()
