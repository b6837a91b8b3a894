"""D2O: a bad response against the policy's own answers, taken together. No good response is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.base import FeedbackTensors, Scope, Term
from polyalign.objectives.d2o_config import D2OConfig
from polyalign.objectives.margins import Configured, log_ratios, over_draws, real_draws, rows
from polyalign.policies.base import Scores


class D2O(Configured[D2OConfig]):
    """Distributional Dispreference Optimization (Duan et al. 2024, "Negating Negatives", arXiv 2403.03419).

    A dispreferred response y_l and K answers y_1 .. y_K that the policy gave itself cost

        -log sigma( beta / K * sum over i of log(pi(y_i) / pi_ref(y_i)) - alpha * log(pi(y_l) / pi_helpful(y_l)) )

    with log-ratios summed over decisions. The self-samples are measured against ``reference``; the dispreferred response
    against the reference "helpful" where the recipe gives one (``references.helpful``; the paper's pi_r^+, tuned to helpful
    answers), else against the same. The paper's pi_r^-, inclined to harm, is then ``reference.run``.

    The view self_samples gives the lists: all edges over one response of one ranking are one list, K their number. On the
    pairs view, or with K = 1, alpha = beta and one reference, this is DPO; with K > 1 it is at most the mean of DPO over the
    K pairs, since DPO's link is convex. Edges weigh within their list, a list counts with the largest weight of its edges,
    and its margin is the mean of theirs.

    The samples should be the policy's own as it now is: ``data.self_samples`` makes them anew every some hundred steps, or
    `polyalign sample --records` does. A policy whose samples are new at every step collapses on them under the paper's loss.

    At the reference, if there is one only: ln 2. Denoising: draws are averaged after the link, within one draw the K
    self-samples share time and noise with y_l.
    """

    needs = frozenset({"reference", "edges"})
    further_references = frozenset({"helpful"})
    scope: Scope = "group"
    value_at_reference = math.log(2)
    Config = D2OConfig

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the lists."""
        reference = references["reference"]
        own = self.config.beta * log_ratios(scores, reference, "sum", self.kind_scale)  # [N, D]
        bad = self.config.alpha * log_ratios(scores, references.get("helpful", reference), "sum", self.kind_scale)
        edges = rows(feedback)
        names = torch.stack([edges.ranking, edges.worse], 1)
        lists, row = torch.unique(names, dim=0, return_inverse=True)  # [L, 2]: ranking, dispreferred sample
        worse, nothing = lists[:, 1], edges.weight.new_zeros(len(lists))
        total = nothing.index_add(0, row, edges.weight)
        share = edges.weight / torch.where(total > 0, total, 1.0)[row]  # [E], adds up to 1 within a list
        asked = share[:, None] * (own[edges.better] - edges.margin[:, None])
        z = torch.zeros_like(bad[worse]).index_add(0, row, asked.to(bad.dtype)) - bad[worse]  # [L, D]
        real = real_draws(scores)
        answered = torch.zeros_like(real[worse], dtype=torch.long).index_add(0, row, real[edges.better].long()) > 0
        losses = over_draws(-F.logsigmoid(z), real[worse] | answered)
        weight = nothing.scatter_reduce(0, row, edges.weight, "amax")
        return {"preference": Term((weight * losses).sum(), weight.sum())}
