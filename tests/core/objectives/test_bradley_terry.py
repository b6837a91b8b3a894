"""Reward models from comparisons, against closed forms, TRL's trainer and scipy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from toys.features import attached, compared, features_of, randomised
from toys.scored import feedback_of, loss_of, terms_of

from polyalign.errors import TrainingError
from polyalign.objectives.reward_modeling.base import Reader, tied_pairs
from polyalign.objectives.reward_modeling.bradley_terry import BradleyTerry, BradleyTerryAspects, HPSv3, PickScore
from polyalign.objectives.reward_modeling.ties import davidson_tie, davidson_win, rao_kupper_tie, rao_kupper_win
from polyalign.objectives.reward_modeling_config import (
    AspectsConfig,
    BradleyTerryConfig,
    HPSv3Config,
    PickScoreObjectiveConfig,
)
from polyalign.records.samples import Edge, Ranked

WIDTH = 5


def hidden(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(count: int) -> list:
    return [compared(2, [Edge(0, 1)], f"r{n}") for n in range(count)]


def test_a_linear_head_starts_at_log_two_and_at_equal_rewards():
    model = attached(BradleyTerry(), WIDTH)
    scores = features_of(hidden(4))
    assert loss_of(model, scores, None, feedback_of(*pairs(2))).item() == pytest.approx(math.log(2), abs=1e-12)
    assert model.rewards(scores).eq(0).all()


@pytest.mark.parametrize("theta", [1.5, 5.0])
@pytest.mark.parametrize("margin", [-3.0, 0.0, 0.7, 12.0])
def test_rao_kupper_is_a_distribution_over_win_tie_and_loss(theta: float, margin: float):
    """p = exp(margin), q = 1: p / (p + theta q), q / (q + theta p) and the rest."""
    z = torch.tensor(margin, dtype=torch.float64)
    p = math.exp(margin)
    win, loss, tie = (
        math.exp(-x.item()) for x in (rao_kupper_win(z, theta), rao_kupper_win(-z, theta), rao_kupper_tie(z, theta))
    )
    assert win == pytest.approx(p / (p + theta), rel=1e-12)
    assert loss == pytest.approx(1 / (1 + theta * p), rel=1e-12)
    assert win + loss + tie == pytest.approx(1.0, abs=1e-12)


def test_videorewards_loss_with_ties_is_rao_kupper_at_five():
    """VideoReward's code: win -log sigma(d - ln 5), tie -log sigma(d - ln 5) - log sigma(-d - ln 5) - ln 24."""
    d = 0.8
    win = -math.log(expit(d - math.log(5)))
    tie = win - math.log(expit(-d - math.log(5))) - math.log(24)
    assert rao_kupper_win(torch.tensor(d), 5.0).item() == pytest.approx(win, rel=1e-6)
    assert rao_kupper_tie(torch.tensor(d), 5.0).item() == pytest.approx(tie, rel=1e-6)


@pytest.mark.parametrize("nu", [0.1, 2.0])
@pytest.mark.parametrize("margin", [-4.0, 0.0, 1.3, 300.0])
def test_davidson_is_a_distribution_over_win_tie_and_loss(nu: float, margin: float):
    z = torch.tensor(margin, dtype=torch.float64)
    win, loss, tie = (math.exp(-x.item()) for x in (davidson_win(z, nu), davidson_win(-z, nu), davidson_tie(z, nu)))
    whole = 1 + math.exp(-margin) + nu * math.exp(-margin / 2)  # all divided by p, so that 300 is no overflow
    assert win == pytest.approx(1 / whole, rel=1e-9)
    assert tie == pytest.approx(nu * math.exp(-margin / 2) / whole, rel=1e-9, abs=1e-300)
    assert win + loss + tie == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("ties", ["rao_kupper", "davidson"])
def test_ties_of_a_ranking_count_as_ties_and_pull_both_rewards_together_alike(ties: str):
    """Ranking {0} > {1, 2} > {3}: one tied pair, its gradient equal and opposite; five strict pairs beside it."""
    ranking = [Ranked(at, rank) for at, rank in enumerate((0, 1, 1, 2))]
    edges = [Edge(a, b) for a, b in combinations(range(4), 2) if (a, b) != (1, 2)]
    feedback = feedback_of(compared(4, edges, rankings=tuple(ranking)))
    tied = tied_pairs(feedback)
    assert (tied.first.tolist(), tied.second.tolist()) == ([1], [2])
    model = randomised(attached(BradleyTerry(BradleyTerryConfig(ties=ties, tie=2.0)), WIDTH))
    states = hidden(4)
    term = terms_of(model, features_of(states), None, feedback)["preference"]
    r = model.rewards(features_of(states)).detach()
    win, tie = (rao_kupper_win, rao_kupper_tie) if ties == "rao_kupper" else (davidson_win, davidson_tie)
    by_hand = sum(win(r[e.better] - r[e.worse], 2.0) for e in edges) + tie(r[1] - r[2], 2.0)
    assert term.sum.item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert term.weight.item() == 6.0
    only = feedback_of(compared(4, [], rankings=(ranking[1], ranking[2])))
    rewards = model.rewards(features_of(states)).detach().requires_grad_()
    model.rewards = lambda scores, reader=None: rewards
    terms_of(model, features_of(states), None, only)["preference"].sum.backward()
    assert rewards.grad[1].item() == pytest.approx(-rewards.grad[2].item(), abs=1e-12)
    assert rewards.grad[1].item() * (r[1] - r[2]).item() > 0


def test_without_a_model_of_ties_they_count_nothing():
    ranking = (Ranked(0, 0), Ranked(1, 0))
    model = attached(BradleyTerry(), WIDTH)
    assert terms_of(model, features_of(hidden(2)), None, feedback_of(compared(2, [], rankings=ranking)))["preference"].weight == 0


def test_probabilities_leave_ties_out():
    """Rao-Kupper at theta: P(win) / (P(win) + P(loss)); Davidson's is sigma of the margin."""
    z = torch.tensor([-1.0, 0.0, 0.4, 2.0], dtype=torch.float64)
    for ties, win in (("rao_kupper", rao_kupper_win), ("davidson", davidson_win)):
        model = BradleyTerry(BradleyTerryConfig(ties=ties, tie=3.0))
        better, worse = torch.exp(-win(z, 3.0)), torch.exp(-win(-z, 3.0))
        torch.testing.assert_close(model.probabilities(z), better / (better + worse))
    torch.testing.assert_close(BradleyTerry(BradleyTerryConfig(ties="davidson")).probabilities(z), torch.sigmoid(z))


def test_theta_of_one_is_refused():
    with pytest.raises(ValueError, match="above 1"):
        BradleyTerryConfig(ties="rao_kupper", tie=1.0)


def test_a_comparison_trains_its_own_aspect_and_missing_labels_count_nothing():
    model = randomised(attached(BradleyTerryAspects(), WIDTH, compared=("beauty", "truth")))
    feedback = feedback_of(
        compared(2, [Edge(0, 1, aspect="truth", weight=2.0)], "a"), compared(2, [Edge(1, 0, aspect="unheard of")], "b")
    )
    terms = terms_of(model, features_of(hidden(4)), None, feedback)
    assert {name: term.weight.item() for name, term in terms.items()} == {"preference/beauty": 0.0, "preference/truth": 2.0}
    values = model.head(hidden(4)).detach()
    margin = values[0, 1] - values[1, 1]
    assert terms["preference/truth"].sum.item() == pytest.approx(2 * -math.log(expit(margin.item())), rel=1e-9)
    terms["preference/truth"].sum.backward()
    assert model.head[-1].weight.grad[0].eq(0).all() and model.head[-1].weight.grad[1].ne(0).all()
    margins = model.head_margins(features_of(hidden(4)), feedback.edges)
    total = values.sum(1)
    torch.testing.assert_close(margins, torch.stack([margin, total[3] - total[2]]))


def test_the_reward_is_one_aspect_or_the_weighted_sum():
    model = AspectsConfig(aspect_weights={"truth": 3.0})
    model = randomised(attached(BradleyTerryAspects(model), WIDTH, compared=("beauty", "truth")))
    scores = features_of(hidden(3))
    values = model.columns(scores)
    torch.testing.assert_close(model.rewards(scores), values[:, 0] + 3 * values[:, 1])
    torch.testing.assert_close(model.rewards(scores, Reader(aspect="beauty")), values[:, 0])
    with pytest.raises(TrainingError, match="'trut'.*Did you mean 'truth'"):
        model.rewards(scores, Reader(aspect="trut"))
    with pytest.raises(TrainingError, match="no feedback is about the aspect 'taste'"):
        attached(BradleyTerryAspects(AspectsConfig(aspects=("taste",))), WIDTH)


def test_pickscore_is_the_divergence_between_pick_and_softmax():
    """Cross-entropy of softmax(s_0, s_1) with (1, 0), and with (1/2, 1/2) less its entropy ln 2, 0 at equal scores."""
    model = randomised(attached(PickScore(), WIDTH))
    states = hidden(4)
    feedback = feedback_of(compared(2, [Edge(0, 1)], "a"), compared(2, [], "b", rankings=(Ranked(0, 0), Ranked(1, 0))))
    s = model.rewards(features_of(states)).detach()
    softmax = torch.softmax(s.view(2, 2), 1)
    by_hand = -softmax[0, 0].log() - 0.5 * softmax[1].log().sum() - math.log(2)
    term = terms_of(model, features_of(states), None, feedback)["preference"]
    assert (term.sum.item(), term.weight.item()) == (pytest.approx(by_hand.item(), rel=1e-12), 2.0)
    same = features_of(states[:1].expand(2, -1))
    even = feedback_of(compared(2, [], rankings=(Ranked(0, 0), Ranked(1, 0))))
    assert terms_of(model, same, None, even)["preference"].sum.item() == pytest.approx(0.0, abs=1e-12)


def test_pickscore_by_cosine_starts_as_clip_and_its_scale_is_bounded():
    model = attached(PickScore(PickScoreObjectiveConfig(similarity="cosine")), WIDTH)
    response, prompt = hidden(3), hidden(3, seed=2)
    scores = features_of(response, prompt_hidden=prompt)
    cosine = torch.nn.functional.cosine_similarity(response, prompt)
    torch.testing.assert_close(model.rewards(scores), cosine / 0.07)
    with torch.no_grad():
        model.scale.fill_(9.0)
    torch.testing.assert_close(model.rewards(scores), 100 * cosine)


@pytest.mark.parametrize("mean", [-6.0, 0.0, 2.5])
@pytest.mark.parametrize("deviation", [0.01, 1.0, 4.0, 14.0])
def test_hpsv3s_quadrature_is_the_integral(mean: float, deviation: float):
    """scipy's adaptive quadrature of -log sigma(z) under N(mean, deviation^2); 14 is the largest deviation two sides can have."""

    def density(x: float) -> float:
        return np.logaddexp(0, -(mean + deviation * x)) * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    expected = quad(
        density, -12, 12, limit=400, epsabs=1e-12, points=[-mean / deviation] if abs(mean / deviation) < 12 else None
    )[0]
    model = HPSv3(HPSv3Config()).double()
    found = model.expected_loss(torch.tensor(mean, dtype=torch.float64), torch.tensor(deviation, dtype=torch.float64))
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_hpsv3_rewards_are_means_and_doubt_raises_the_loss_of_a_right_pair():
    model = randomised(attached(HPSv3(), WIDTH))
    scores = features_of(hidden(2))
    mean, deviation = model.gaussians(scores)
    torch.testing.assert_close(model.rewards(scores), mean)
    right = torch.tensor(3.0, dtype=torch.float64)
    losses = [model.expected_loss(right, torch.tensor(d, dtype=torch.float64)).item() for d in (0.1, 1.0, 3.0)]
    assert losses == sorted(losses)
    edge = Edge(0, 1)
    together = math.hypot(*deviation.tolist())
    expected = model.expected_loss(mean[0] - mean[1], torch.tensor(together, dtype=torch.float64))
    assert loss_of(model, scores, None, feedback_of(compared(2, [edge]))).item() == pytest.approx(expected.item(), rel=1e-9)


def test_value_at_the_start_is_the_declared_one():
    for model in (BradleyTerry(), HPSv3()):
        started = attached(model, WIDTH)
        loss = loss_of(started, features_of(hidden(4)), None, feedback_of(*pairs(2)))
        assert loss.item() == pytest.approx(model.value_at_reference, abs=1e-6)
