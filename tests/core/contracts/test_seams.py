"""Thirty-line toys that keep the seams honest for what comes later. Each trains, and each expected number is derived."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from toys.gaussian import GaussianPolicy, ListSource, pair_examples, sample

from polyalign.objectives.base import FeedbackTensors, Objective, Term
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.policies.base import Batch, Kind, Scores, Transition
from polyalign.policies.reference import FrozenCopy
from polyalign.records.samples import Edge, Example, Rated
from polyalign.training.batches import collate_examples
from polyalign.training.window import WindowLoss


def optimise(
    policy: nn.Module, objective: Objective, micros: list, reference=None, steps: int = 40, rate: float = 0.05
) -> list[float]:
    """Train with the trainer's own window loss; return the loss of each step."""
    window = WindowLoss(policy, reference, objective, "cpu")
    optimizer = torch.optim.Adam([*policy.parameters(), *objective.parameters()], lr=rate)
    losses = []
    for _ in range(steps):
        losses.append(window.train(micros, lambda loss, last: loss.backward())["loss"])
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_gaussian_action_policy_learns_preferred_actions_by_dpo():
    policy = GaussianPolicy()
    micros = [collate_examples(pair_examples(8), policy.collator)]
    losses = optimise(policy, DPO(DPOConfig(beta=0.5)), micros, FrozenCopy(policy))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.25


class TwoKinds(GaussianPolicy):
    """Two tokens and one denoising error in one response; parameters are the decisions' own scores."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.tensor([[-1.0, -2.0], [-1.5, -0.5]]))
        self.error = nn.Parameter(torch.tensor([[0.30], [0.10]]))

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        rows = torch.cat([self.token, -0.5 * self.error], 1)[:, None]
        kind = torch.tensor([[int(Kind.TOKEN), int(Kind.TOKEN), int(Kind.DENOISING)]] * 2)
        return Scores(rows, torch.ones_like(rows, dtype=torch.bool), kind)


def test_tokens_and_a_denoising_error_in_one_response_are_scaled_apart():
    """margin = 0.1 * (sum of token log-prob changes) + 0.1 * 20000 * (-1/2 change of error), by hand below."""
    policy = TwoKinds()
    reference = FrozenCopy(policy)
    with torch.no_grad():
        policy.token += torch.tensor([[0.1, 0.2], [0.0, -0.1]])
        policy.error += torch.tensor([[-0.002], [0.001]])
    micro = collate_examples(
        [Example("r", (sample("a", [0, 0, 0], [0, 0], "k"), sample("b", [0, 0, 0], [1, 1], "k")), (Edge(0, 1),))], policy.collator
    )
    objective = DPO(DPOConfig(beta=0.1, kind_scale={"denoising": 20000.0}))
    loss = WindowLoss(policy, reference, objective, "cpu").evaluate([micro])["loss"]
    margin = 0.1 * (0.3 + 0.1) + 0.1 * 20000 * 0.5 * (0.002 + 0.001)
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-4)


class Reinforce(Objective):
    """-advantage * log-probability of the stored decisions; advantages travel as ratings."""

    needs = frozenset({"ratings"})

    def forward(self, scores, references, feedback: FeedbackTensors, statistics=None) -> dict[str, Term]:
        log_probs = scores.reduced("sum").mean(1)[feedback.ratings.sample]
        return {"policy_gradient": Term(-(feedback.ratings.value * log_probs).sum(), torch.tensor(float(len(log_probs))))}


class TransitionPolicy(GaussianPolicy):
    """Scores stored sampler transitions x_t -> x_next under N(x_t + drift, 1)."""

    def __init__(self, transitions: dict[str, list[Transition]]) -> None:
        super().__init__()
        self.transitions = transitions
        self.drift = nn.Parameter(torch.zeros(2))

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        rows = []
        for item in batch.samples:
            steps = self.transitions[item.id]
            means = torch.stack([step.x_t for step in steps]) + self.drift
            rows.append(torch.distributions.Normal(means, 1.0).log_prob(torch.stack([step.x_next for step in steps])).sum(-1))
        log_probs = torch.stack(rows)[:, None]
        return Scores(
            log_probs, torch.ones_like(log_probs, dtype=torch.bool), torch.full(log_probs.shape[::2], int(Kind.TRANSITION))
        )


def test_reinforce_on_stored_transitions_follows_the_rewarded_direction():
    right, left = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    stored = {
        name: [Transition(torch.zeros(2), move, 0.5, "sde"), Transition(move, 2 * move, 0.2, "sde")]
        for name, move in (("a", right), ("b", left))
    }
    policy = TransitionPolicy(stored)
    samples = (sample("a", [0, 0, 0], [0, 0], "k"), sample("b", [0, 0, 0], [0, 0], "k"))
    micro = collate_examples([Example("r", samples, ratings=(Rated(0, 1.0), Rated(1, 0.0)))], policy.collator)
    WindowLoss(policy, None, Reinforce(), "cpu").train([micro], lambda loss, last: loss.backward())
    # d/d drift of -(1 * sum_t (x_next - x_t - drift)^2 / -2) / 2 samples = -sum_t (move) / 2 = -move
    assert torch.allclose(policy.drift.grad, -right)


class PrototypeObjective(Objective):
    """Bradley-Terry on w_annotator . hidden, with one learned prototype per annotator: a stateful objective."""

    needs = frozenset({"edges", "hidden"})
    wants = frozenset({"hidden"})

    def __init__(self, annotators: tuple[str, ...], size: int) -> None:
        super().__init__()
        self.annotators = annotators
        self.prototypes = nn.Parameter(torch.zeros(len(annotators), size))

    def forward(self, scores, references, feedback: FeedbackTensors, statistics=None) -> dict[str, Term]:
        edges = feedback.edges
        who = torch.tensor([self.annotators.index(name) for name in edges.annotator])
        utility = scores.extras["hidden"]
        margin = ((utility[edges.better] - utility[edges.worse]) * self.prototypes[who]).sum(-1)
        return {"pal": Term(-nn.functional.logsigmoid(margin).sum(), edges.weight.sum())}

    def weights(self, scores_mask: Tensor, kind: Tensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        return {"pal": feedback.edges.weight.sum()}


def test_stateful_objective_learns_annotators_that_disagree():
    policy = GaussianPolicy().requires_grad_(False)
    examples = []
    for number in range(8):
        pair = (sample(f"{number}a", [1.0, 0.1 * number, 0.0], [0, 0], "k"), sample(f"{number}b", [-1.0, 0.0, 0.2], [0, 0], "k"))
        examples.append(
            Example(f"r{number}", pair, (Edge(0, 1, annotator="ann") if number % 2 else Edge(1, 0, annotator="bob"),))
        )
    objective = PrototypeObjective(("ann", "bob"), 2)
    losses = optimise(policy, objective, [collate_examples(examples, policy.collator)], steps=60, rate=0.2)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.1
    ann, bob = objective.prototypes.detach()
    assert torch.dot(ann, bob) < 0


class RewardGradient(Objective):
    """Maximise a differentiable reward of the policy's own sample (ReFL, DRaFT in small)."""

    needs = frozenset({"sample_grad"})
    wants = frozenset({"sample_grad"})

    def __init__(self, on_tensors) -> None:
        super().__init__()
        self.on_tensors = on_tensors

    def forward(self, scores, references, feedback: FeedbackTensors, statistics=None) -> dict[str, Term]:
        rewards = self.on_tensors(scores.extras["sample_grad"])
        return {"reward": Term(-rewards.sum(), torch.tensor(float(len(rewards))))}

    def weights(self, scores_mask: Tensor, kind: Tensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        return {"reward": torch.tensor(float(len(feedback.group)))}


def test_reward_backpropagation_reaches_the_policy_through_its_sample():
    policy = GaussianPolicy()
    target = torch.tensor([0.7, -0.4])
    micro = collate_examples([Example("r", (sample("a", [1.0, 0.0, 0.0], [0, 0], "k"),))], policy.collator)
    losses = optimise(policy, RewardGradient(lambda x: -((x - target) ** 2).sum(-1)), [micro], steps=120)
    assert losses[-1] < 1e-3 < losses[0]
    assert torch.allclose(policy(micro.batch, frozenset({"sample_grad"})).extras["sample_grad"][0], target, atol=0.05)


class ActorCritic(Objective):
    """Policy gradient with the value head's prediction as baseline, both from one forward pass."""

    needs = frozenset({"ratings", "values"})
    wants = frozenset({"values"})

    def forward(self, scores, references, feedback: FeedbackTensors, statistics=None) -> dict[str, Term]:
        at, reward = feedback.ratings.sample, feedback.ratings.value
        values = scores.extras["values"][at]
        advantage = (reward - values).detach()
        count = torch.tensor(float(len(at)))
        return {
            "actor": Term(-(advantage * scores.reduced("sum").mean(1)[at]).sum(), count),
            "critic": Term(((values - reward) ** 2).sum(), count),
        }

    def weights(self, scores_mask: Tensor, kind: Tensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        count = torch.tensor(float(len(feedback.ratings.sample)))
        return {"actor": count, "critic": count}


def test_value_head_is_trained_in_the_same_forward_and_needs_no_second_pass():
    policy = GaussianPolicy()
    calls = []
    policy.register_forward_hook(lambda *_: calls.append(1))
    examples = [
        Example(f"r{i}", (sample(f"{i}", [float(i), 1.0, 0.0], [0, 0], "k"),), ratings=(Rated(0, 0.2 * i),)) for i in range(4)
    ]
    micro = collate_examples(examples, policy.collator)
    optimise(policy, ActorCritic(), [micro], steps=200, rate=0.05)
    assert len(calls) == 200
    values = policy(micro.batch, frozenset({"values"})).extras["values"]
    assert torch.allclose(values, torch.tensor([0.0, 0.2, 0.4, 0.6]), atol=0.1)


class CategoricalPolicy(GaussianPolicy):
    """One token from a vocabulary of five; reduces ``token_targets(ids, values)`` without handing out [N, T, V]."""

    provides = frozenset({"log_probs", "token_targets"})

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(5))

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        log_probs = self.logits.log_softmax(-1)
        rows = log_probs[torch.zeros(len(batch), 1, 1, dtype=torch.long)]
        extras = {}
        if "token_targets" in want:
            ids, values = batch.tensors["target_ids"], batch.tensors["target_values"]  # [N, T, K]
            extras["token_targets"] = (log_probs[ids] * values).sum(-1)  # [N, T]
        return Scores(rows, torch.ones_like(rows, dtype=torch.bool), torch.zeros(len(batch), 1, dtype=torch.long), extras)


class Distillation(Objective):
    """Cross-entropy against a teacher's top-k probabilities."""

    needs = frozenset({"token_targets"})
    wants = frozenset({"token_targets"})

    def forward(self, scores, references: Mapping[str, Scores], feedback: FeedbackTensors, statistics=None) -> dict[str, Term]:
        return {"distillation": Term(-scores.extras["token_targets"].sum(), scores.mask.sum().float())}

    def weights(self, scores_mask: Tensor, kind: Tensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        return {"distillation": scores_mask.sum().float()}


def test_distribution_objective_matches_the_teacher_through_token_targets():
    policy = CategoricalPolicy()
    micro = collate_examples([Example("r", (sample("a", [0, 0, 0], [0, 0], "k"),))], policy.collator)
    micro.batch.tensors |= {"target_ids": torch.tensor([[[1, 3]]]), "target_values": torch.tensor([[[0.25, 0.75]]])}
    losses = optimise(policy, Distillation(), [micro], steps=400, rate=0.2)
    assert losses[0] == pytest.approx(math.log(5), abs=1e-6)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert losses[-1] == pytest.approx(entropy, abs=1e-2)


def test_keyed_order_of_the_toy_source_is_a_permutation_of_each_epoch():
    source = ListSource(pair_examples(5))
    assert sorted(source.position(p, 3)[0] for p in range(5, 10)) == [0, 1, 2, 3, 4]
