"""What a run reports about preferences besides the loss, as (sum, weight) so that windows and processes add up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyalign.objectives.base import RESPONSE, FeedbackTensors, Term
from polyalign.objectives.margins import over_draws, real_draws, rows
from polyalign.policies.base import Kind, Scores


def preference_metrics(
    scores: Scores,
    reference: Scores | None,
    feedback: FeedbackTensors,
    reduction: str = "sum",
    kind_scale: Mapping[Kind, float] | None = None,
) -> dict[str, Term]:
    """Return detached metrics of one batch. Divide the total of sums by the total of weights.

    Scores are reduced over decisions and then averaged over draws (there is no link here). Over row edges, by edge weight:

    - ``margin``: implicit reward of better minus worse, before beta; the reward is the log-ratio, or without a
      reference the log-probability. ``accuracy``: share of edges with a positive margin; a margin of exactly 0 counts half.
    - ``chosen_score``, ``rejected_score``: the policy's log-probability (for denoising ``-1/2 *`` squared error).
    - ``chosen_log_ratio``, ``rejected_log_ratio`` (with a reference).

    Over samples (with a reference; mismatched samples left out): ``log_ratio`` is the mean log-ratio of all responses,
    ``drift`` the mean of its absolute value, ``desirable_log_ratio`` and ``undesirable_log_ratio`` those of labelled ones.

    The names depend only on whether there is a reference, never on the batch. A weight of 0 means: nothing to report.
    """
    with torch.no_grad():
        real = real_draws(scores)
        policy = over_draws(scores.reduced(reduction, kind_scale), real)  # [N]
        edges = rows(feedback)

        def over_edges(values: Tensor) -> Term:
            return Term((edges.weight * values).sum(), edges.weight.sum())

        def over_samples(values: Tensor, counted: Tensor) -> Term:
            return Term(values[counted].sum(), counted.to(values.dtype).sum())

        rewards = policy
        if reference is not None:
            rewards = policy - over_draws(reference.reduced(reduction, kind_scale), real)
        margin = rewards[edges.better] - rewards[edges.worse]  # [E]
        metrics = {
            "margin": over_edges(margin),
            "accuracy": over_edges((torch.sign(margin) + 1) / 2),
            "chosen_score": over_edges(policy[edges.better]),
            "rejected_score": over_edges(policy[edges.worse]),
        }
        if reference is not None:
            responses = feedback.role == RESPONSE
            metrics |= {
                "chosen_log_ratio": over_edges(rewards[edges.better]),
                "rejected_log_ratio": over_edges(rewards[edges.worse]),
                "log_ratio": over_samples(rewards, responses),
                "drift": over_samples(rewards.abs(), responses),
                "desirable_log_ratio": over_samples(rewards, responses & (feedback.label > 0)),
                "undesirable_log_ratio": over_samples(rewards, responses & (feedback.label < 0)),
            }
        return metrics
