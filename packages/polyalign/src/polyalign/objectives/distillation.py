"""Distillation: the student's next-token distributions against a teacher's, at every position of a response.

A teacher's distribution comes from a store (`policies.teacher_store`) as its K likeliest tokens and one bucket for all
others, so every divergence here is between distributions over K + 1 events. That is exact for K = V; for fewer tokens a
divergence between the coarser distributions is a lower bound of the one between the full ones (data processing), zero where
they agree on every listed token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import LongTensor, Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import MISMATCH, SELF_SAMPLE, FeedbackTensors, Objective, Term
from polyalign.objectives.distillation_config import ADPAConfig, DCKDConfig, GKDConfig, Rest
from polyalign.objectives.margins import rows
from polyalign.objectives.supervised import negative_log_likelihood, wins, worth_imitating
from polyalign.policies.base import Scores


class Positions(NamedTuple):
    """Log-probabilities over the K + 1 events at the P positions of the samples that count; ``weight`` ``[P]`` of each."""

    student: Tensor
    teacher: Tensor
    reference: Tensor | None
    weight: Tensor


class Distillation(Objective):
    """What the three share: which samples count how much, and averages over their positions."""

    needs = frozenset({"token_targets"})
    wants = frozenset({"token_targets"})

    def parts(self, feedback: FeedbackTensors) -> dict[str, Tensor]:
        """Return, per term, how much each sample counts ``[N]``: 0 leaves it out."""
        raise NotImplementedError

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        decisions = scores_mask.sum((-2, -1))  # [N]
        return {name: (counted * decisions).sum() for name, counted in self.parts(feedback).items()}


class GKD(Distillation):
    """Generalised knowledge distillation (Agarwal et al. 2023, arXiv 2306.13649), a mean over tokens of the divergence

    ``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q``, p the teacher and q the student (eq. 1): a
    generalised Jensen-Shannon divergence. At the ends it is what the paper (and TRL 1.16) put there: ``beta: 0`` forward
    KL(p || q), ``beta: 1`` reverse KL(q || p). These are the limits of the divergence over ``beta (1 - beta)``, so a value next
    to an end is smaller than the end by about that factor.

    Every response counts, and so do self-samples (`TeacherConfig.self_samples`: the on-policy share of the paper, drawn
    once from the starting student); mismatches do not. Temperature is 1; TRL's default is 0.9.
    """

    def __init__(self, config: GKDConfig | None = None) -> None:
        super().__init__()
        self.config = config or GKDConfig()

    def parts(self, feedback: FeedbackTensors) -> dict[str, Tensor]:
        return {"distillation": (feedback.role != MISMATCH).float()}

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"distillation": (sum of divergences, number of tokens)}``."""
        found = positions(scores, self.parts(feedback)["distillation"], self.config.rest)
        return {"distillation": mean_term(generalised_js(found.student, found.teacher, self.config.beta), found)}


class DCKD(Distillation):
    """Dual-constrained knowledge distillation (Gao et al. 2025, arXiv 2502.17927): the student follows a preference-tuned
    teacher p on the better response AND on the worse one,

    ``nll_weight * NLL(y_w) + better_weight * KL(p || q | y_w) + worse_weight * KL(p || q | y_l)``,

    each a mean over tokens. A response that wins or loses several comparisons counts once for each, by edge weight.
    The authors' code floors student probabilities at 1e-7, which stops the gradient there; we compute in logarithms instead.
    """

    needs = frozenset({"token_targets", "edges"})

    def __init__(self, config: DCKDConfig | None = None) -> None:
        super().__init__()
        self.config = config or DCKDConfig()

    def parts(self, feedback: FeedbackTensors) -> dict[str, Tensor]:
        better = wins(feedback)
        return {"nll": better, "better": better, "worse": defeats(feedback)}

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return the terms "nll", "better" and "worse", their factors multiplied in."""
        config, counted = self.config, self.parts(feedback)
        terms = {"nll": scaled(negative_log_likelihood(scores, counted["nll"]), config.nll_weight)}
        for name, factor in (("better", config.better_weight), ("worse", config.worse_weight)):
            found = positions(scores, counted[name], config.rest)
            terms[name] = scaled(mean_term(kl(found.teacher, found.student), found), factor)
        return terms


class ADPA(Distillation):
    """Advantage-guided distillation for preference alignment (Gao et al. 2025, arXiv 2502.17927):

    ``nll_weight * NLL(y_w) - advantage_weight * mean_t sum_a q(a | s_t) A(s_t, a)``, with the advantage
    ``A(s, a) = log p_dpo(a | s) - log p_ref(a | s)`` of a preference-tuned teacher over what it was before, beta absorbed.

    States s_t are the prefixes of responses that the student sampled itself (``states: self_samples``), or of the responses
    worth imitating. Tokens outside the teacher's top K together are one action whose advantage is that of the bucket
    (``rest: bucket``): q then sums to 1, and a constant added to A(s, .) changes no gradient. ``rest: dropped`` is the
    authors' sum over listed tokens alone, ``rest: renormalised`` makes q a distribution over them.

    Departure: the reference's log-probabilities are stored at the very tokens of the tuned teacher; the authors' two top-K lists
    have gaps, which they fill with the reference's smallest entry. Their optional KL penalty is a `gkd` term beside this
    one in a `weighted_sum`. ADPA+ starts from a student trained by `dckd`.
    """

    def __init__(self, config: ADPAConfig | None = None) -> None:
        super().__init__()
        self.config = config or ADPAConfig()
        if self.config.states == "self_samples":
            self.needs = self.needs | {"self_samples"}

    def parts(self, feedback: FeedbackTensors) -> dict[str, Tensor]:
        good = worth_imitating(feedback).float()
        sampled = (feedback.role == SELF_SAMPLE).float()
        return {"nll": good, "advantage": sampled if self.config.states == "self_samples" else good}

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return the terms "nll" and "advantage", their factors multiplied in."""
        config, counted = self.config, self.parts(feedback)
        found = positions(scores, counted["advantage"], "bucket")
        if found.reference is None:
            raise TrainingError("adpa compares two teachers: name the untuned one in objective.teacher.reference")
        floor = math.log(config.floor)
        advantage = found.teacher.clamp(min=floor) - found.reference.clamp(min=floor)  # [P, K + 1]
        student = found.student if config.rest == "bucket" else found.student[:, :-1]
        if config.rest == "renormalised":
            student = student.log_softmax(-1)
        expected = (student.exp() * advantage[:, : student.shape[1]]).sum(-1)
        return {
            "nll": scaled(negative_log_likelihood(scores, counted["nll"]), config.nll_weight),
            "advantage": scaled(mean_term(-expected, found), config.advantage_weight),
        }


def positions(scores: Scores, counted: Tensor, rest: Rest) -> Positions:
    """Return the scored positions of the samples whose weight ``counted`` ``[N]`` is above 0."""
    if "teacher_log_probs" not in scores.extras:
        raise TrainingError("the batch carries no teacher's distributions; give objective.teacher, or use with_token_targets")
    extras = scores.extras
    chosen = scores.mask[:, 0] & (counted > 0)[:, None]  # [N, T]; what does not count may hold anything
    student = torch.cat([extras["target_log_probs"][chosen], extras["target_rest"][chosen][:, None]], -1)
    reference = extras["teacher_reference_log_probs"][chosen] if "teacher_reference_log_probs" in extras else None
    found = Positions(student, extras["teacher_log_probs"][chosen], reference, counted[:, None].expand_as(chosen)[chosen])
    if rest == "renormalised":
        listed = found.teacher[:, :-1].log_softmax(-1)
        found = found._replace(student=student[:, :-1].log_softmax(-1), teacher=listed)
    return found


def mean_term(values: Tensor, found: Positions) -> Term:
    """Return values ``[P]`` as a weighted mean over positions."""
    return Term((found.weight * values).sum(), found.weight.sum())


def scaled(term: Term, factor: float) -> Term:
    return Term(factor * term.sum, term.weight)


def defeats(feedback: FeedbackTensors) -> Tensor:
    """Return the total weight of the row edges that each sample loses, ``[N]``; see `supervised.wins`."""
    edges = rows(feedback)
    return torch.zeros(len(feedback.role), device=edges.weight.device).index_add(0, edges.worse, edges.weight)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """Return ``KL(first || second)`` over the last dimension, from finite log-probabilities."""
    return (first.exp() * (first - second)).sum(-1)


def generalised_js(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Return the divergence of `GKD` over the last dimension, from finite log-probabilities."""
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)
