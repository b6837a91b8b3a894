"""Plackett-Luce and PRO against brute force over orders, closed forms, and each other."""

from __future__ import annotations

import math
from itertools import pairwise, permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from toys.scored import example, feedback_of, gradient, loss_of, pair, scores_of, terms_of

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.config import DPOConfig, FDPOConfig
from polyalign.objectives.listwise import PRO, PlackettLuce
from polyalign.objectives.listwise_config import PlackettLuceConfig, PROConfig
from polyalign.objectives.pairwise import DPO
from polyalign.policies.base import Kind, Scores
from polyalign.records.samples import Edge, Example, Ranked, Rated

UNIT = PROConfig(temperatures="unit", sft_weight=0.0)


def ranked(*ranks: int | None, weight: float = 1.0, ratings: tuple[float, ...] = (), name: str = "r", **fields) -> Example:
    """One ranking; a rank of None is a response that was judged incomparable."""
    plain = example(len(ranks), name=name)
    listed = tuple(Ranked(at, rank, 0, weight, **fields) for at, rank in enumerate(ranks) if rank is not None)
    rated = tuple(Rated(at, value) for at, value in enumerate(ratings))
    return Example(name, plain.samples, rankings=listed, ratings=rated)


def of(rewards) -> Scores:
    """One decision per sample."""
    return scores_of([[[float(value)]] for value in rewards])


def zeros(rewards) -> Scores:
    return of([0.0] * len(rewards))


def order_probability(rewards: list[float], order: tuple[int, ...]) -> float:
    """Draw from the softmax of what is left until nothing is."""
    probability = 1.0
    for at in range(len(order)):
        left = [math.exp(rewards[i]) for i in order[at:]]
        probability *= left[0] / sum(left)
    return probability


def agreeing_orders(ranks: list[int]) -> list[tuple[int, ...]]:
    """All orders of the indices in which nobody stands before a better ranked one."""
    return [o for o in permutations(range(len(ranks))) if all(ranks[a] <= ranks[b] for a, b in pairwise(o))]


rewards_of_a_list = st.lists(st.floats(-4, 4), min_size=2, max_size=5)


@st.composite
def lists(draw) -> tuple[list[float], list[int]]:
    rewards = draw(rewards_of_a_list)
    return rewards, [draw(st.integers(0, 2)) for _ in rewards]


@settings(max_examples=40, deadline=None)
@given(case=lists())
def test_unordered_ties_sum_the_probabilities_of_every_agreeing_order(case):
    rewards, ranks = case
    scores = of(rewards)
    term = terms_of(PlackettLuce(PlackettLuceConfig(beta=1.0)), scores, zeros(rewards), feedback_of(ranked(*ranks)))["preference"]
    expected = -math.log(sum(order_probability(rewards, order) for order in agreeing_orders(ranks)))
    assert term.sum.item() == pytest.approx(expected if len(set(ranks)) > 1 else 0.0, abs=1e-9)
    assert term.weight.item() == float(len(set(ranks)) > 1)


@settings(max_examples=40, deadline=None)
@given(case=lists())
def test_equal_ties_average_the_cost_of_every_agreeing_order(case):
    rewards, ranks = case
    objective = PlackettLuce(PlackettLuceConfig(beta=1.0, ties="equal"))
    loss = loss_of(objective, of(rewards), zeros(rewards), feedback_of(ranked(*ranks)))
    costs = [-math.log(order_probability(rewards, order)) for order in agreeing_orders(ranks)]
    assert loss.item() == pytest.approx(sum(costs) / len(costs), abs=1e-9)


def test_an_unordered_tier_is_a_race_that_its_members_win():
    """Plackett-Luce is a race of exponential clocks: P(the tied ring before the rest) by quadrature, for a tie of 6."""
    rewards = [0.3, -1.0, 2.0, 0.5, 1.1, -0.2, 0.7, -1.5]
    rates = torch.tensor(rewards, dtype=torch.float64).exp().tolist()
    rest = sum(rates[6:])

    def density(t: float) -> float:
        return rest * math.exp(-rest * t) * math.prod(1 - math.exp(-rate * t) for rate in rates[:6])

    expected = integrate.quad(density, 0, math.inf, epsabs=1e-13, epsrel=1e-12)[0]
    objective = PlackettLuce(PlackettLuceConfig(beta=1.0))
    loss = loss_of(objective, of(rewards), zeros(rewards), feedback_of(ranked(*[0] * 6, 1, 1)))
    assert loss.item() == pytest.approx(-math.log(expected), abs=1e-9)


def test_the_recorded_order_of_a_strict_ranking_is_an_event_of_a_gumbel_race():
    """A frequency: 100,000 races of Gumbel noise on rewards (0.9, 0, -0.4, 0.2); the ranking 0 > 3 > 1 > 2."""
    rewards = [0.9, 0.0, -0.4, 0.2]
    drawn = stats.gumbel_r.rvs(size=(100_000, 4), random_state=0) + rewards
    seen = ((-drawn).argsort(1) == [0, 3, 1, 2]).all(1).mean()
    loss = loss_of(PlackettLuce(PlackettLuceConfig(beta=1.0)), of(rewards), zeros(rewards), feedback_of(ranked(0, 2, 3, 1)))
    assert math.exp(-loss.item()) == pytest.approx(seen, abs=5 * math.sqrt(seen * (1 - seen) / 100_000))


@pytest.mark.parametrize("config", [{}, {"divergence": "js"}, {"divergence": "forward_kl", "reduction": "mean"}])
@settings(max_examples=15, deadline=None)
@given(values=st.lists(st.floats(-3, 0), min_size=8, max_size=8))
def test_a_ranking_of_two_is_dpo(config: dict, values: list[float]):
    """Two responses of two decisions and two draws; worth of the first in the one, of the second in the other record."""
    policy, reference = (scores_of([[half[:1], half[1:2]], [half[2:4], half[1:3]]]) for half in (values[:4], values[4:]))
    for first, edge in ((0, Edge(0, 1, 0.5)), (1, Edge(1, 0, 0.5))):
        listwise = PlackettLuce(PlackettLuceConfig(beta=0.7, **config))
        pairwise = DPO(FDPOConfig(beta=0.7, **{"divergence": "reverse_kl", **config}))
        mine = terms_of(listwise, policy, reference, feedback_of(ranked(first, 1 - first, weight=0.5)))["preference"]
        theirs = terms_of(pairwise, policy, reference, feedback_of(example(2, [edge])))["preference"]
        assert mine.sum.item() == pytest.approx(theirs.sum.item(), abs=1e-9)
        assert mine.weight == theirs.weight
        torch.testing.assert_close(gradient(mine.sum, policy), gradient(theirs.sum, policy), atol=1e-9, rtol=0)


@settings(max_examples=30, deadline=None)
@given(rewards=rewards_of_a_list, data=st.data())
def test_pro_at_unit_temperature_is_plackett_luce(rewards: list[float], data: st.DataObject):
    """Mean log-probabilities, no reference (a reference of zeros), no fine-tuning term: value and gradient."""
    ranks = data.draw(st.permutations(range(len(rewards))))
    lengths = [data.draw(st.integers(1, 3)) for _ in rewards]
    scores = scores_of([[[reward] * length] for reward, length in zip(rewards, lengths, strict=True)])
    nothing = scores_of([[[0.0] * length] for length in lengths])
    feedback = feedback_of(ranked(*ranks))
    pro = terms_of(PRO(UNIT), scores, None, feedback)["preference"]
    other = terms_of(PlackettLuce(PlackettLuceConfig(beta=1.0, reduction="mean")), scores, nothing, feedback)["preference"]
    assert pro.sum.item() == pytest.approx(other.sum.item(), abs=1e-9)
    torch.testing.assert_close(gradient(pro.sum, scores), gradient(other.sum, scores), atol=1e-9, rtol=0)


def test_pro_of_two_rated_responses_is_a_softplus():
    """softplus(-(r_1 - r_2)(s_1 - s_2)) with r = (0.9, 0.3) scaled by 5: 3 * (s_1 - s_2), s_1 = -1.5, s_2 = -0.7."""
    scores = scores_of([[[-1.0, -2.0]], [[-0.7]]])
    config = PROConfig(sft_weight=0.0, temperature_scale=5.0)
    loss = loss_of(PRO(config), scores, None, feedback_of(ranked(0, 1, ratings=(0.9, 0.3))))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3.0 * (-1.5 + 0.7))), abs=1e-6)


def test_pro_equals_its_equation_on_four_responses_and_two_annotators():
    """Rewards (1.0, 0.7, 0.4, 0.4) by mean rating; the last two are tied: they meet the better ones, not each other."""
    s = [-0.5, -1.2, -0.9, -0.1]
    rewards = [1.0, 0.7, 0.4, 0.4]
    base = ranked(0, 1, 2, 2)
    ratings = [Rated(at, reward + shift) for at, reward in enumerate(rewards) for shift in (-0.0, 0.0)]
    ratings[0], ratings[1] = Rated(0, 1.0, annotator="x"), Rated(0, 1.0, annotator="y")
    ratings[2], ratings[3] = Rated(1, 0.5), Rated(1, 0.9)
    case = Example("r", base.samples, rankings=base.rankings, ratings=tuple(ratings))
    expected = 0.0
    for k, worse in ((0, (1, 2, 3)), (1, (2, 3))):
        own = max(rewards[k] - rewards[i] for i in worse) * s[k]
        expected -= own - math.log(math.exp(own) + sum(math.exp((rewards[k] - rewards[i]) * s[i]) for i in worse))
    terms = terms_of(PRO(PROConfig(sft_weight=0.2)), of(s), None, feedback_of(case))
    assert terms["preference"].sum.item() == pytest.approx(expected, abs=1e-6)
    assert terms["nll"].sum.item() == pytest.approx(0.2 * 3**2 * 0.5, abs=1e-9)


def test_pro_sums_the_best_responses_decisions_and_averages_the_best_ones():
    """Two best of three: mean of 3.0 and 1.0, times (3 - 1)^2 * 0.05."""
    scores = scores_of([[[-1.0, -2.0]], [[-1.0]], [[-9.0]]])
    term = terms_of(PRO(), scores, None, feedback_of(ranked(0, 0, 1)))["nll"]
    assert term.sum.item() == pytest.approx(0.05 * 4 * 2.0, abs=1e-9)


def test_pro_with_equal_rewards_has_no_gradient():
    """Constant cost log 3 + log 2 (three and two candidates left)."""
    scores = of([-1.0, -2.0, -0.3])
    loss = loss_of(PRO(PROConfig(sft_weight=0.0)), scores, None, feedback_of(ranked(0, 1, 2, ratings=(0.6, 0.6, 0.6))))
    assert loss.item() == pytest.approx(math.log(6), abs=1e-6)
    assert gradient(loss, scores).eq(0).all()


def test_pro_takes_temperature_one_where_a_rating_is_missing_and_never_a_negative_one():
    feedback = feedback_of(ranked(0, 1, 2, ratings=(0.9, 0.1)))
    scores = of([-1.0, -2.0, -0.3])
    plain = loss_of(PRO(UNIT), scores, None, feedback)
    assert loss_of(PRO(PROConfig(sft_weight=0.0)), scores, None, feedback).item() == pytest.approx(plain.item(), abs=1e-9)
    against = feedback_of(ranked(0, 1, ratings=(0.2, 0.8)))  # the ratings contradict the ranking: T is 0
    loss = loss_of(PRO(PROConfig(sft_weight=0.0)), of([-1.0, -2.0]), None, against)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-9)


@pytest.mark.parametrize("objective", [PRO(), PlackettLuce(), PlackettLuce(PlackettLuceConfig(ties="equal"))])
def test_incomparable_responses_get_no_gradient_and_change_nothing(objective):
    without, among = of([-1.0, -2.0, -0.3]), of([-1.0, -7.0, -2.0, -0.3])
    loss = loss_of(objective, without, zeros([0] * 3), feedback_of(ranked(1, 0, 2)))
    other = loss_of(objective, among, zeros([0] * 4), feedback_of(ranked(1, None, 0, 2)))
    assert other.item() == pytest.approx(loss.item(), abs=1e-12)
    slopes = gradient(other, among)
    assert slopes[1].eq(0).all()
    torch.testing.assert_close(slopes[[0, 2, 3]], gradient(loss, without), atol=1e-12, rtol=0)


@pytest.mark.parametrize("objective", [PRO(UNIT), PlackettLuce(), PlackettLuce(PlackettLuceConfig(ties="equal"))])
def test_tied_responses_get_symmetric_gradients(objective):
    """Ranking 0 > {1, 2} > 3. Exchanging the tied scores exchanges their gradients and leaves the loss as it is."""
    feedback = feedback_of(ranked(0, 1, 1, 2))
    one, other = of([-1.0, -2.5, -0.3, -1.7]), of([-1.0, -0.3, -2.5, -1.7])
    here, there = (loss_of(objective, scores, zeros([0] * 4), feedback) for scores in (one, other))
    assert here.item() == pytest.approx(there.item(), abs=1e-12)
    torch.testing.assert_close(gradient(here, one)[[0, 2, 1, 3]], gradient(there, other), atol=1e-12, rtol=0)


def test_what_a_tie_of_two_alone_says():
    """``unordered``: nothing. ``equal``: -1/2 log sigma(z) - 1/2 log sigma(-z), so that opposite gradients close the gap."""
    feedback, scores, reference = feedback_of(ranked(0, 0)), of([-1.0, -2.5]), zeros([0] * 2)
    silent = terms_of(PlackettLuce(PlackettLuceConfig(beta=1.0)), scores, reference, feedback)["preference"]
    assert (silent.sum.item(), silent.weight.item()) == (0.0, 0.0)
    assert gradient(silent.sum, scores).eq(0).all()
    equal = loss_of(PlackettLuce(PlackettLuceConfig(beta=1.0, ties="equal")), scores, reference, feedback)
    cdpo = DPO(DPOConfig(beta=1.0, label_smoothing=0.499999))
    assert equal.item() == pytest.approx(loss_of(cdpo, scores, reference, feedback_of(pair())).item(), abs=1e-5)
    slopes = gradient(equal, scores).flatten()
    assert slopes[0] > 0 and slopes.sum().item() == pytest.approx(0.0, abs=1e-12)


def test_best_of_forty_is_a_softmax_and_needs_no_enumeration():
    rewards = torch.linspace(-2, 1, 40, dtype=torch.float64)
    loss = loss_of(PlackettLuce(PlackettLuceConfig(beta=1.0)), of(rewards), zeros(rewards), feedback_of(ranked(*[1] * 39, 0)))
    assert loss.item() == pytest.approx(-torch.log_softmax(rewards, 0)[-1].item(), abs=1e-9)


@pytest.mark.parametrize(("ties", "ranks"), [("unordered", [0] * 17 + [1]), ("equal", [0] + [1] * 17)])
def test_too_many_ties_say_how_many_can_be(ties: str, ranks: list[int]):
    objective = PlackettLuce(PlackettLuceConfig(ties=ties))
    with pytest.raises(TrainingError, match="17 responses tie in one tier; at most 16"):
        loss_of(objective, zeros(ranks), zeros(ranks), feedback_of(ranked(*ranks)))


def test_rankings_are_weighted_and_those_across_prompts_left_out():
    config = PlackettLuceConfig(beta=1.0)
    scores, reference = of([-1.0, -2.0, -3.0, -1.0, -4.0, -1.0]), zeros([0] * 6)
    feedback = feedback_of(
        ranked(0, 1, weight=2.0, name="a"), ranked(1, 0, weight=0.5, name="b"), ranked(0, 1, contrast="prompt", name="c")
    )
    term = terms_of(PlackettLuce(config), scores, reference, feedback)["preference"]
    assert term.weight.item() == 2.5
    expected = 2 * math.log1p(math.exp(-1.0)) + 0.5 * math.log1p(math.exp(-2.0))
    assert term.sum.item() == pytest.approx(expected, abs=1e-9)
    assert gradient(term.sum, scores)[4:].eq(0).all()


@pytest.mark.parametrize("rewards", [(1e4, -1e4, 3e3, 0.0), (-300.0, -300.0, -300.0, -301.0)])
@pytest.mark.parametrize("ties", ["unordered", "equal"])
def test_extreme_rewards_stay_finite_in_float32(rewards, ties: str):
    values = torch.tensor(rewards).reshape(-1, 1, 1).requires_grad_()
    scores = Scores(values, torch.ones(4, 1, 1, dtype=torch.bool), torch.zeros(4, 1, dtype=torch.long))
    blank = Scores(torch.zeros(4, 1, 1), scores.mask, scores.kind)
    for ranks in product(range(2), repeat=4):
        loss = loss_of(PlackettLuce(PlackettLuceConfig(beta=1.0, ties=ties)), scores, blank, feedback_of(ranked(*ranks)))
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient(loss, scores)).all()


def test_draws_are_averaged_outside_the_link_of_a_ranking():
    """Draws (1.0, 0.2) against (0.0, 0.4): mean of softplus(-1) and softplus(0.2)."""
    scores = scores_of([[[1.0], [0.2]], [[0.0], [0.4]]], Kind.DENOISING)
    reference = scores_of([[[0.0], [0.0]]] * 2, Kind.DENOISING)
    loss = loss_of(PlackettLuce(PlackettLuceConfig(beta=1.0)), scores, reference, feedback_of(ranked(0, 1)))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1.0)) + math.log1p(math.exp(0.2))) / 2, abs=1e-12)


def test_at_the_reference_a_strict_ranking_costs_log_factorial():
    loss = loss_of(PlackettLuce(), of([-1.0, -2.0, -3.0, -0.5]), of([-1.0, -2.0, -3.0, -0.5]), feedback_of(ranked(2, 0, 3, 1)))
    assert loss.item() == pytest.approx(math.log(24), abs=1e-9)


def test_pro_recovers_a_planted_utility():
    """A linear utility in 6 features, 200 rankings of 5 drawn with noise, L-BFGS; Spearman on fresh lists of 20 is above 0.95."""
    torch.manual_seed(0)
    truth = torch.randn(6, dtype=torch.float64)
    features = torch.randn(200, 5, 6, dtype=torch.float64)
    noisy = features @ truth + torch.distributions.Gumbel(0.0, 1.0).sample((200, 5))
    ranks = noisy.argsort(1, descending=True).argsort(1).tolist()
    feedback = FeedbackTensors.of([ranked(*row, name=f"r{number}") for number, row in enumerate(ranks)])
    weights = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")
    mask, kind = torch.ones(1000, 1, 1, dtype=torch.bool), torch.zeros(1000, 1, dtype=torch.long)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scores = Scores((features.reshape(-1, 6) @ weights)[:, None, None], mask, kind)
        term = PRO(UNIT)(scores, {}, feedback)["preference"]
        loss = term.sum / term.weight
        loss.backward()
        return loss

    optimizer.step(closure)
    fresh = torch.randn(30, 20, 6, dtype=torch.float64)
    found = [stats.spearmanr(row @ truth, row @ weights.detach()).statistic for row in fresh]
    assert sum(found) / len(found) > 0.95
