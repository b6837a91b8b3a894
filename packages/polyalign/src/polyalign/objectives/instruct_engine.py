"""InstructEngine: two instructions, two responses, each response better under its own instruction."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from polyalign.objectives.base import Edges, FeedbackTensors, Term
from polyalign.objectives.config import InstructEngineConfig
from polyalign.objectives.margins import Configured, columns, edge_losses, log_ratios, margins, rows
from polyalign.policies.base import Scores


class InstructEngine(Configured[InstructEngineConfig]):
    """Cross-validation alignment on a grid (arXiv 2504.10329, eq. 8).

    With ``X[i][j] = log pi(y_j | x_i) - log pi_ref(y_j | x_i)`` a grid costs

        -log sigma(beta (X[1][1] - X[1][2])) - log sigma(beta (X[2][2] - X[2][1]))                      (rows)
        + column_weight * (-log sigma(beta (X[1][1] - X[2][1])) - log sigma(beta (X[2][2] - X[1][2])))  (columns)

    The printed second row term names an error of the first row; a reviewer of the paper calls it a slip, and it is read
    here as above. The paper leaves columns out, hence column_weight 0. An edge's margin is subtracted after beta.

    For a denoising draw ``X = -1/2 * (error - reference error)``, so beta is Diffusion-DPO's (its 1/2 included) and the
    paper's weighting over t is constant. All four samples of a grid share (t, noise), since they share a draw key.

    The weight of a term is the number of grids (a grid counts as the mean weight of its edges in the term), whatever the
    number of rows; ``terms: mean`` divides by that number instead of summing. At the reference a 2 x 2 grid costs
    2 ln 2 * (1 + column_weight), or half of it with ``terms: mean``.
    """

    needs = frozenset({"reference", "edges", "grid"})
    scope = "group"
    Config = InstructEngineConfig

    def __init__(self, config: InstructEngineConfig | None = None) -> None:
        super().__init__(config)
        terms_per_grid = 2 if self.config.terms == "sum" else 1
        self.value_at_reference = terms_per_grid * math.log(2) * (1 + self.config.column_weight)

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``rows`` and, if column_weight is not 0, ``columns``; weights count grids."""
        ratios = log_ratios(scores, references["reference"], "sum", self.kind_scale)  # [N, D]
        terms = {"rows": self._grid_term(ratios, scores, feedback, rows(feedback, self.config))}
        if self.config.column_weight:
            total, grids = self._grid_term(ratios, scores, feedback, columns(feedback, self.config))
            terms["columns"] = Term(self.config.column_weight * total, grids)
        return terms

    def _grid_term(self, ratios: Tensor, scores: Scores, feedback: FeedbackTensors, edges: Edges) -> Term:
        scaled = self.config.beta * margins(ratios, edges) - edges.margin[:, None]  # [E, D]
        losses = edge_losses(-F.logsigmoid(scaled), scores, edges)  # [E]
        grid = feedback.group[edges.better]  # [E]
        edges_in_grid = torch.bincount(grid, minlength=feedback.groups)[grid]  # [E]
        share = edges.weight / edges_in_grid  # [E], adds up to the mean edge weight of the grid
        return Term(((share if self.config.terms == "mean" else edges.weight) * losses).sum(), share.sum())
