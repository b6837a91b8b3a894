"""Policy gradients against numbers worked out by hand, brute force and identities; TRL's judgement is in tests/oracles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys.scored import example, feedback_of, gradient, loss_of, scores_of

from polyalign.errors import ConfigError, TrainingError
from polyalign.objectives.actor_critic import PPO
from polyalign.objectives.advantages import whitened
from polyalign.objectives.base import Experience, FeedbackTensors
from polyalign.objectives.importance import divergence
from polyalign.objectives.online_config import (
    CISPOConfig,
    DAPOConfig,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    PolicyGradientConfig,
    PPOConfig,
    PPOMaxConfig,
    ReinforcePPConfig,
    RLOOConfig,
)
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.objectives.terms import WeightedSumConfig
from polyalign.objectives.weighted_sum import WeightedSum
from polyalign.policies.base import Scores

ALL = [GRPOConfig(), DrGRPOConfig(), DAPOConfig(), GSPOConfig(), CISPOConfig(), RLOOConfig(), ReinforcePPConfig()]
NEW = [[[-1.0, -2.0]], [[-0.5]], [[-1.5, -0.3, -0.7]], [[-0.9]]]  # two groups of two, of unequal length
OLD = [[[-1.1, -1.4]], [[-0.6]], [[-1.2, -0.5, -0.7]], [[-0.4]]]


def groups(experience: Experience | None, count: int = 2, each: int = 2) -> FeedbackTensors:
    feedback = feedback_of(*(example(each) for _ in range(count)))
    feedback.experience = experience
    return feedback


def experience_of(old: Scores, advantages: list[float], **more: object) -> Experience:
    values = torch.tensor(advantages, dtype=torch.float64)
    return Experience(torch.zeros_like(values), values, old.log_probs.detach(), longest=4, **more)  # type: ignore[arg-type]


def test_grpo_by_hand() -> None:
    """Ratios exp(new - old): the first response's are e^0.1 (inside) and e^-0.6 = 0.549 (A = 1 > 0: the smaller counts, itself);
    the second's e^0.1 with A = -1; the third's e^-0.3, e^0.2 = 1.221 (clipped to 1.2), 1 with A = 2; the fourth's e^-0.5 with
    A = -1 is held at 0.8. Mean over decisions, then over the four responses."""
    e = np.exp
    by_response = [-(e(0.1) + e(-0.6)) / 2, e(0.1), -2 * (e(-0.3) + 1.2 + 1) / 3, 0.8]
    scores = scores_of(NEW)
    loss = loss_of(PolicyGradient(GRPOConfig()), scores, None, groups(experience_of(scores_of(OLD), [1.0, -1.0, 2.0, -1.0])))
    assert loss.item() == pytest.approx(np.mean(by_response), rel=1e-12)
    grad = gradient(loss, scores)
    assert grad[2, 0, 1] == 0 and grad[3, 0, 0] == 0  # where clipping holds
    assert grad[0, 0, 0].item() == pytest.approx(-e(0.1) / 2 / 4)


@pytest.mark.parametrize("config", ALL, ids=lambda config: type(config).__name__)
def test_on_policy_every_surrogate_has_the_gradient_of_reinforce(config: PolicyGradientConfig) -> None:
    """At ratio 1 the gradient at a decision is -A times its share of the average, whatever the ratio and clip."""
    scores, advantages = scores_of(NEW), [1.0, -1.0, 2.0, -1.0]
    feedback = groups(experience_of(scores, advantages))
    objective = PolicyGradient(config.model_copy(update={"kl_weight": 0.0}))
    grad = gradient(loss_of(objective, scores, None, feedback), scores)
    lengths = [2, 1, 3, 1]
    for row, (advantage, length) in enumerate(zip(advantages, lengths)):
        share = {"sequence": 1 / (4 * length), "token": 1 / 7, "constant": 1 / (4 * 4)}[config.average]
        share = 1 / 4 if config.ratio == "product" else share  # the whole response moves with each of its decisions
        assert grad[row, 0, :length].tolist() == pytest.approx([-advantage * share] * length)


@pytest.mark.parametrize("config", ALL, ids=lambda config: type(config).__name__)
def test_any_split_adds_up(config: PolicyGradientConfig) -> None:
    """Sums and weights of two halves, of unequal padding, are those of the whole; padding holds NaN throughout."""
    objective = PolicyGradient(config)
    advantages = [1.0, -1.0, 2.0, -1.0]

    def terms(rows: slice) -> dict[str, tuple[float, float]]:
        scores, old = scores_of(NEW[rows]), scores_of(OLD[rows])
        feedback = groups(experience_of(old, advantages[rows]), count=len(NEW[rows]) // 2)
        found = objective(scores, {"reference": scores_of(OLD[rows])}, feedback)
        known = objective.weights(scores.mask, scores.kind, feedback)
        assert {name: term.weight.item() for name, term in found.items()} == {name: w.item() for name, w in known.items()}
        return {name: (term.sum.item(), term.weight.item()) for name, term in found.items()}

    whole, halves = terms(slice(None)), [terms(slice(0, 2)), terms(slice(2, 4))]
    for name, pair in whole.items():
        assert pair == pytest.approx(tuple(sum(half[name][part] for half in halves) for part in (0, 1)))


def test_draws_are_averaged_after_the_ratio() -> None:
    """A sample whose two draws are equal costs what it costs with one; NaN pads the draw that another sample lacks."""
    one = loss_of(PolicyGradient(), scores_of(NEW[:2]), None, groups(experience_of(scores_of(OLD[:2]), [1.0, -1.0]), 1))
    new, old = scores_of([NEW[0] * 2, NEW[1]]), scores_of([OLD[0] * 2, OLD[1]])
    assert loss_of(PolicyGradient(DrGRPOConfig()), new, None, groups(experience_of(old, [1.0, -1.0]), 1)).item() == pytest.approx(
        loss_of(
            PolicyGradient(DrGRPOConfig()),
            scores_of(NEW[:2]),
            None,
            groups(experience_of(scores_of(OLD[:2]), [1.0, -1.0]), 1),
        ).item()
    )
    assert loss_of(PolicyGradient(), new, None, groups(experience_of(old, [1.0, -1.0]), 1)).item() == pytest.approx(one.item())


def test_an_empty_response_costs_nothing_and_breaks_nothing() -> None:
    for config in ALL:
        scores, old = scores_of([*NEW[:3], [[]]]), scores_of([*OLD[:3], [[]]])
        loss = loss_of(
            PolicyGradient(config), scores, scores_of([*OLD[:3], [[]]]), groups(experience_of(old, [1.0, -1.0, 2.0, 5.0]))
        )
        grad = gradient(loss, scores)
        assert torch.isfinite(loss) and torch.isfinite(grad).all() and not grad[3].any()


def test_dual_clip_bounds_what_a_negative_advantage_can_cost() -> None:
    """A ratio of e^2 with A = -1 costs 7.39, with dual_clip 3 it costs 3 and pulls no more; A > 0 is as ever."""
    new, old = scores_of([[[0.0]], [[0.0]]]), scores_of([[[-2.0]], [[-2.0]]])
    feedback = groups(experience_of(old, [-1.0, 1.0]), 1)
    free = loss_of(PolicyGradient(), new, None, feedback)
    assert free.item() == pytest.approx((np.exp(2.0) - 1.2) / 2)
    bounded = loss_of(PolicyGradient(GRPOConfig(dual_clip=3.0)), new, None, feedback)
    assert bounded.item() == pytest.approx((3.0 - 1.2) / 2)
    assert not gradient(bounded, new).any()


def test_divergence_estimates_add_up_to_the_divergence() -> None:
    """Over all outcomes of a categorical, weighted by pi: k1 and k3 are exactly KL, and so is the gradient with the ratio."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.5, -0.2, 0.4], dtype=torch.float64), 0)
    log_pi, mask = torch.log_softmax(logits, 0), torch.ones(4, dtype=torch.bool)
    exact = (log_pi.exp() * (log_pi - reference)).sum()
    for estimator in ("k1", "k3"):
        assert (log_pi.exp() * divergence(log_pi, reference, mask, estimator)).sum().item() == pytest.approx(exact.item())
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    for estimator in ("k1", "k3"):
        ratio = (log_pi - log_pi.detach()).exp()
        unbiased = (log_pi.detach().exp() * ratio * divergence(log_pi, reference, mask, estimator)).sum()
        (found,) = torch.autograd.grad(unbiased, logits, retain_graph=True)
        torch.testing.assert_close(found, wanted)


def test_entropy_and_demonstrations_are_terms_of_their_own() -> None:
    """The bonus is the mean entropy over decisions; demonstrations are micro-batches without experience, and every micro-batch
    names every term."""
    objective = PolicyGradient(GRPOConfig(entropy_weight=0.1, sft_weight=0.5))
    assert {"entropy", "demonstrations"} <= objective.needs
    scores = scores_of(NEW[:2])
    scores = replace(scores, extras={"entropy": torch.tensor([[1.0, 2.0], [4.0, float("nan")]])})
    rolled = objective(scores, {}, groups(experience_of(scores, [1.0, -1.0]), 1))
    assert (rolled["entropy"].sum / rolled["entropy"].weight).item() == pytest.approx(-0.1 * 7 / 3)
    shown = objective(scores_of(NEW[:2]), {}, groups(None, 1))
    assert (shown["sft"].sum / shown["sft"].weight).item() == pytest.approx(0.5 * 3.5 / 3)
    assert rolled.keys() == shown.keys()
    assert not rolled["sft"].weight and not shown["policy"].weight


def test_penalties_in_the_reward_come_before_the_baseline() -> None:
    """RLOO: R - 0.5 * sum of log-ratios, then against the other one of the pair. REINFORCE++: what is still to come, penalties
    included, whitened over decisions."""
    old, reference = scores_of(OLD), scores_of(NEW)
    mask, group = old.mask, groups(None).group
    rewards = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64)
    given = Experience(rewards, torch.zeros_like(rewards), old.log_probs.detach(), reference.log_probs.detach())
    gaps = [np.array(o[0]) - np.array(n[0]) for o, n in zip(OLD, NEW)]
    left = [reward - 0.5 * gap.sum() for reward, gap in zip(rewards.tolist(), gaps)]
    found = PolicyGradient(RLOOConfig(kl_weight=0.5)).appraise(given, mask, group).advantages
    assert found.tolist() == pytest.approx([left[0] - left[1], left[1] - left[0], left[2] - left[3], left[3] - left[2]])

    found = PolicyGradient(ReinforcePPConfig(kl_weight=0.5)).appraise(given, mask, group).advantages
    to_come = torch.zeros(4, 3, dtype=torch.float64)
    for row, gap in enumerate(gaps):
        for step in range(len(gap)):
            to_come[row, step] = rewards[row] - 0.5 * gap[step:].sum()
    torch.testing.assert_close(found, whitened(to_come, mask[:, 0]))


def test_ppos_value_term_takes_the_larger_error_and_its_gradient_stops_outside() -> None:
    """Values 1.0 and 0.3, old 0.5 and 0.2, returns 0 and 1: clipped to 0.7 and 0.3. Errors max(1, 0.49) = 1, max(0.49, 0.49)."""
    objective = PPO(PPOConfig(value_weight=2.0, kl_weight=0.0))
    values = torch.tensor([[1.0, 0.3]], dtype=torch.float64, requires_grad=True)
    scores = replace(scores_of([[[-1.0, -1.0]]]), extras={"values": values})
    experience = experience_of(scores, [0.0])
    experience.old_values = torch.tensor([[0.5, 0.2]], dtype=torch.float64)
    experience.returns = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    term = objective(scores, {}, groups(experience, 1, 1))["value"]
    assert (term.sum / term.weight).item() == pytest.approx(2.0 * (1.0 + 0.49) / 2 / 2)
    experience.returns = torch.tensor([[2.0, 1.0]], dtype=torch.float64)  # now the clipped 0.7 is further off, and holds still
    (grad,) = torch.autograd.grad(objective(scores, {}, groups(experience, 1, 1))["value"].sum, values)
    assert grad[0, 0] == 0 and grad[0, 1] != 0


def test_ppo_max_normalises_by_all_rewards_so_far_and_remembers() -> None:
    """After ten rounds the moments are numpy's of the whole stream (ddof 1); the last round's rewards were scaled by them and
    clipped; gamma = lambda = 1 makes the advantage reward minus value. The first round trained the value head alone."""
    objective = PPO(PPOMaxConfig(kl_weight=0.0, scale="none", gae_lambda=1.0, reward_clip=0.8, value_warmup=1))
    draw = np.random.default_rng(0)
    stream, mask = [], torch.ones(5, 1, 1, dtype=torch.bool)
    for number in range(10):
        rewards = draw.normal(3.0, 2.0, 5)
        stream += rewards.tolist()
        tensor = torch.tensor(rewards)
        values = torch.full((5, 1), 0.25, dtype=torch.float64)
        given = Experience(tensor, torch.zeros(5), torch.zeros(5, 1, 1), None, values)
        found = objective.appraise(given, mask, torch.zeros(5, dtype=torch.long))
        expected = np.clip((rewards - np.mean(stream)) / (np.std(stream, ddof=1) + 1e-4), -0.8, 0.8) - 0.25
        assert found.returns is not None
        assert (found.returns[:, 0] - 0.25).tolist() == pytest.approx(expected.tolist())
        assert found.advantages[:, 0].tolist() == pytest.approx(expected.tolist() if number else [0.0] * 5)
    assert objective.mean.item() == pytest.approx(np.mean(stream))
    again = PPO(PPOMaxConfig())
    again.load_state_dict(objective.state_dict())
    assert again.seen.item() == 50 and again.rounds.item() == 10


def test_rewards_per_decision_reach_the_advantage_of_their_decision() -> None:
    objective = PPO(PPOConfig(kl_weight=0.0, scale="none", gae_lambda=0.0))
    mask = torch.ones(1, 1, 3, dtype=torch.bool)
    paid = torch.tensor([[1.0, -2.0, 4.0]])
    given = Experience(paid.sum(-1), torch.zeros(1), torch.zeros(1, 1, 3), None, torch.zeros(1, 3), decision_rewards=paid)
    assert objective.appraise(given, mask, torch.zeros(1, dtype=torch.long)).advantages.tolist() == paid.tolist()


def test_bad_requests_say_what_would_do() -> None:
    with pytest.raises(ValueError, match="scale: group is for advantage: group"):
        PolicyGradientConfig(advantage="leave_one_out")
    with pytest.raises(ValueError, match="use grpo or reinforce_pp"):
        PPOConfig(advantage="returns")
    with pytest.raises(ValueError, match="use token or sequence"):
        CISPOConfig(ratio="product")
    with pytest.raises(ConfigError, match="keep one of them"):
        WeightedSum(WeightedSumConfig.model_validate({"terms": ["grpo", "rloo"]}))
    scores = scores_of(NEW)
    nothing_kept = replace(experience_of(scores, [0.0] * 4), old_log_probs=None)
    with pytest.raises(TrainingError, match="online_dpo"):
        PolicyGradient()(scores, {}, groups(nothing_kept))
