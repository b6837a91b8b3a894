"""Rankings of any length: which response is best of those that are left, asked again until none is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import torch
from torch import LongTensor, Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors, Objective, Rankings, Term
from polyalign.objectives.listwise_config import PlackettLuceConfig, PROConfig
from polyalign.objectives.margins import Configured, over_draws, real_draws
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.ratings import by_aspect, weighted_mean
from polyalign.policies.base import Scores

LARGEST_TIE = 16  # its subsets are enumerated


class PlackettLuce(Objective):
    """The DPO loss of whole rankings (Rafailov et al. 2023, arXiv 2305.18290, appendix A.3, eq. 20), with ties.

    With scaled rewards r = beta g(X) (see `DPO`) a ranking y_1 > ... > y_n costs ``sum over k of log(sum over i >= k of
    exp(r_i)) - r_k``: minus the log-probability that drawing from the softmax of what is left gives this order. Of two
    responses it is `DPO`. Incomparable responses are in no ranking and get no gradient. Margins of edges are not read.

    Ties, by configuration:

    - ``unordered``: a tier is a set whose order nobody knows. The cost is minus the log of the SUM of the probabilities of
      all orders that agree with the tiers: ``P(S) = sum over i in S of exp(r_i) / (sum over S and all worse of exp(r))
      * P(S without i)`` for a tier S. The last tier then costs nothing, and a ranking of one tier weighs nothing, as it
      gives no pairs: this is the treatment that makes "best of n, the others not compared" a ranking of two tiers.
    - ``equal``: the MEAN over those orders of the cost. Tied responses are drawn to equal rewards: two that tie and nothing
      else cost ``-1/2 log sigma(z) - 1/2 log sigma(-z)``, cDPO with smoothing 1/2.

    Both treat tied responses alike: exchanging their scores exchanges their gradients. At most 16 may tie (any number
    in an ``unordered`` last tier); more raise `TrainingError`.

    Denoising: applied per draw, then averaged. Without ties (and with ``equal``) the loss is convex in the rewards, so it
    bounds the loss at the expected rewards; with ``unordered`` ties it is nominal. There is no one value at the reference:
    a ranking of n without ties costs log n! there.
    """

    needs = frozenset({"reference", "rankings"})

    def __init__(self, config: PlackettLuceConfig | None = None) -> None:
        super().__init__()
        self.config = config or PlackettLuceConfig()
        self.dpo = DPO(self.config.as_dpo())  # its rewards are ours

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the rankings of responses to one prompt."""
        equal = self.config.ties == "equal"
        lists = ordered(feedback.rankings, ties_count=equal)
        rewards = self.dpo.scaled_rewards(scores, references["reference"])[lists.members]  # [R, n, D]
        tie = mean_over_orders if equal else any_order
        losses = rewards[:, :0].sum(1)  # [R, D], zeros
        for row, tied, worse in lists.tiers(with_last=equal):
            tied_rewards = rewards[row[:, None], tied]  # [G, k, D]
            # Nothing worse must count as nothing, in the gradient too: minus infinity would give NaN there.
            rest = rewards[row].masked_fill(~worse[..., None], torch.finfo(rewards.dtype).min / 4).logsumexp(1)
            losses = losses.index_add(0, row, tie(tied_rewards, rest))
        return {"preference": list_term(losses, scores, lists)}


class PRO(Configured[PROConfig]):
    """Preference Ranking Optimization (Song et al. 2023, arXiv 2306.17492): no reference model.

    With s the mean log-probability per decision, a ranking of n costs, for each response k against the strictly worse ones i,
    ``-log(exp(T_kk s_k) / (exp(T_kk s_k) + sum over i of exp(T_ki s_i)))``, with ``T_ki = max(0, r_k - r_i)`` for rewards r
    (mean ratings, aspects weighing alike) and ``T_kk = max over i of T_ki``. To this comes ``sft_weight * (n - 1)^2 * -log
    pi`` of the best response, summed over its decisions as in the released code (of several best ones: their mean). T
    multiplies: the paper writes its reciprocal and calls that the temperature.

    Where not all of a ranking's responses are rated, every T is 1, and without ties the first part is `PlackettLuce` of s.
    Tied responses are not compared; equal ratings make T = 0, a constant cost and no gradient. Ratings lie on [0, 1] here:
    ``temperature_scale`` brings them to the scale of a reward model (it multiplies the T of 1 too).

    A ranking of one tier weighs nothing. There is no fixed value at the reference. Denoising: s is ``-1/2 * mean squared
    error``, compared per draw; without temperatures in the thousands differences of errors are not felt.
    """

    needs = frozenset({"rankings"})
    Config = PROConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``preference`` and ``nll``, both weighted by the rankings' weights."""
        lists = ordered(feedback.rankings)
        best = (lists.ranks == lists.ranks[:, :1]) & lists.real  # [R, n]
        likelihood = scores.reduced("sum", self.kind_scale)[lists.members]  # [R, n, D]
        of_best = torch.where(best[..., None], likelihood, 0.0).sum(1) / best.sum(1).clamp(min=1)[:, None]  # [R, D]
        rounds = (lists.real.sum(1) - 1).to(of_best.dtype)[:, None]
        return {
            "preference": list_term(self._contests(scores, feedback, lists), scores, lists),
            "nll": list_term(-self.config.sft_weight * rounds**2 * of_best, scores, lists),
        }

    def _contests(self, scores: Scores, feedback: FeedbackTensors, lists: Lists) -> Tensor:
        """Return the cost of each ranking's contests, ``[R, D]``."""
        s = scores.reduced("mean", self.kind_scale)[lists.members]  # [R, n, D]
        worse = (lists.ranks[:, None] > lists.ranks[:, :, None]) & lists.real[:, None] & lists.real[:, :, None]  # [R, k, i]
        warmth = self._temperatures(feedback, lists).to(s.dtype)  # [R, k, i]
        own = torch.where(worse, warmth, 0.0).amax(-1, keepdim=True)  # T_kk
        itself = torch.eye(worse.shape[-1], dtype=torch.bool, device=s.device)
        warmth = torch.where(itself, own, warmth)
        logits = (warmth[..., None] * s[:, None]).masked_fill(~(worse | itself)[..., None], -torch.inf)  # [R, k, i, D]
        return (logits.logsumexp(2) - own * s).sum(1)

    def _temperatures(self, feedback: FeedbackTensors, lists: Lists) -> Tensor:
        """Return ``T_ki`` ``[R, n, n]`` (the diagonal means nothing)."""
        n = lists.members.shape[1]
        unit = torch.ones(len(lists), n, n, device=lists.weight.device)
        if self.config.temperatures == "unit":
            return self.config.temperature_scale * unit
        _, by_sample = by_aspect(feedback)
        mean, known = weighted_mean(by_sample, torch.ones_like(by_sample))
        reward = mean[lists.members]
        rated = (known[lists.members] | ~lists.real).all(1)[:, None, None]
        differences = (reward[:, :, None] - reward[:, None]).clamp(min=0)
        return self.config.temperature_scale * torch.where(rated, differences, unit)


@dataclass(frozen=True)
class Lists:
    """R rankings side by side, each from best to worst. ``members``, ``ranks`` and ``real`` (False at padding) are ``[R, n]``,
    ``weight`` is ``[R]``."""

    members: LongTensor
    ranks: LongTensor
    real: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.weight)

    def tiers(self, with_last: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the tiers, those of k members together: row ``[G]``, columns ``[G, k]``, and what is worse ``[G, n]`` (bool).

        A ranking's last tier is left out unless ``with_last`` and it is a tie: who is left last has no choice.
        """
        by_size: dict[int, list[tuple[int, int, int]]] = {}
        for row, (ranks, real) in enumerate(zip(self.ranks.tolist(), self.real.tolist(), strict=True)):
            listed = ranks[: sum(real)]
            for rank in dict.fromkeys(listed):
                if rank == listed[-1] and not (with_last and listed.count(rank) > 1):
                    continue
                by_size.setdefault(listed.count(rank), []).append((row, listed.index(rank), rank))
        found = []
        for size, tiers in by_size.items():
            rows, first, worst = torch.tensor(tiers, device=self.ranks.device).unbind(1)
            columns = first[:, None] + torch.arange(size, device=first.device)
            found.append((rows, columns, (self.ranks[rows] > worst[:, None]) & self.real[rows]))
        return found


def ordered(rankings: Rankings, ties_count: bool = False) -> Lists:
    """Return the rankings of responses to one prompt, laid out. One tier alone has weight 0, unless ``ties_count``."""
    kept = (~rankings.columns).nonzero().flatten()
    names, row = torch.unique(rankings.ranking[kept], return_inverse=True)
    by_rank = torch.argsort(rankings.rank[kept], stable=True)
    order = by_rank[torch.argsort(row[by_rank], stable=True)]
    kept, row = kept[order], row[order]
    length = torch.bincount(row, minlength=len(names))
    column = torch.arange(len(row), device=row.device) - (length.cumsum(0) - length)[row]
    width = int(length.max()) if len(length) else 1

    def table(values: Tensor) -> Tensor:
        return values.new_zeros(len(names), width).index_put((row, column), values[kept])

    ranks, real = table(rankings.rank), table(torch.ones_like(rankings.columns))
    weight = table(rankings.weight)[:, 0]
    if not ties_count:
        weight = torch.where(((ranks > ranks[:, :1]) & real).any(1), weight, 0.0)
    return Lists(table(rankings.sample), ranks, real, weight)  # type: ignore[arg-type]


def list_term(losses: Tensor, scores: Scores, lists: Lists) -> Term:
    """Return the weighted sum over rankings of losses ``[R, D]``, draws averaged, with the sum of weights as its weight."""
    drawn = (real_draws(scores)[lists.members] & lists.real[..., None]).any(1)  # [R, D]
    return Term((lists.weight * over_draws(losses, drawn)).sum(), lists.weight.sum())


def any_order(tied: Tensor, rest: Tensor) -> Tensor:
    """Return ``-log P(all k tied ones are drawn before any of the rest)``, ``[G, D]``.

    ``tied`` ``[G, k, D]``: rewards; ``rest`` ``[G, D]``: log of the summed exponentials of what is worse. Exact, in 2^k steps.
    """
    placed = torch.zeros_like(rest)[:, None]  # log P of nobody being left to place
    for members, without in _subsets(tied.shape[1]):
        left = tied[:, members]  # [G, C, s, D]: the sets of s that may be left
        ways = (left + placed[:, without]).logsumexp(2)
        placed = ways - torch.logaddexp(left.logsumexp(2), rest[:, None])
    return -placed[:, 0]


def mean_over_orders(tied: Tensor, rest: Tensor) -> Tensor:
    """Return the cost of the tied ones' places, averaged over their k! orders, ``[G, D]``; arguments as in `any_order`.

    Every set of s of them is what is left in the same share of the orders.
    """
    cost = -tied.sum(1)
    for members, _ in _subsets(tied.shape[1]):
        cost = cost + torch.logaddexp(tied[:, members].logsumexp(2), rest[:, None]).mean(1)
    return cost


@lru_cache
def _subsets(k: int) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Return, for s = 1 .. k, all sets of s out of k, and for each member where the set without it stands among those before."""
    if k > LARGEST_TIE:
        raise TrainingError(f"{k} responses tie in one tier; at most {LARGEST_TIE} can: rank them, or leave some out")
    levels = []
    place: dict[tuple[int, ...], int] = {(): 0}
    for size in range(1, k + 1):
        sets = list(combinations(range(k), size))
        without = [[place[members[:at] + members[at + 1 :]] for at in range(size)] for members in sets]
        levels.append(([list(members) for members in sets], without))
        place = {members: number for number, members in enumerate(sets)}
    return levels
