"""The Gaussian toy with rollouts that can be scored again: trajectories of one to three actions, a value per action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polyalign.objectives.actor_critic import PPO
from polyalign.objectives.base import Objective
from polyalign.objectives.online_config import GRPOConfig, OnlineDPOConfig, PPOMaxConfig, ReinforcePPConfig, RLOOConfig
from polyalign.objectives.online_preference import OnlineDPO
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.policies.base import Actions, Batch, Kind, Rollout, Rollouts, Scores
from polyalign.randomness import keyed_generator, keyed_seed
from polyalign.records.samples import Sample
from polyalign.records.schema import Message, TextPart, text_of
from polyalign.rewards.base import Judged, Reward
from toys.gaussian import ACTION, ActionCollator, GaussianPolicy, numbers

ONLINE = {"rewards": [{"name": "near"}], "samples_per_prompt": 3, "minibatches": 2, "epochs": 2, "decoding": {"longest": 3}}


class RollingCollator(ActionCollator):
    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        actions = [rollout.decisions[0].values for rollout in rollouts]  # type: ignore[union-attr]
        longest = max(map(len, actions))
        return Batch(
            tuple(Sample(f"rollout-{n}", rollout.prompt, rollout.parts, "") for n, rollout in enumerate(rollouts)),
            {
                "states": torch.tensor([numbers(text_of(rollout.prompt[-1].parts)) for rollout in rollouts]),
                "actions": torch.stack([torch.nn.functional.pad(a, (0, 0, 0, longest - len(a))) for a in actions]),
            },
            torch.stack([torch.arange(longest) < len(a) for a in actions])[:, None],
            torch.full((len(rollouts), longest), int(Kind.ACTION)),
        )


class RollingPolicy(GaussianPolicy):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.collator = RollingCollator()

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        scores = super().forward(batch, want)
        if "values" in want:
            steps = torch.arange(batch.mask.shape[-1])
            scores.extras["values"] = scores.extras["values"][:, None] * (1 + steps)  # type: ignore[index]
        return scores

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        made = []
        for prompt in prompts:
            text = text_of(prompt[-1].parts)
            mean = self.mean(torch.tensor(numbers(text)))
            for draw in range(samples_per_prompt):
                length = 1 + keyed_seed(seed, "length", text, draw) % decoding["longest"]
                actions = mean + torch.randn(length, ACTION, generator=keyed_generator(seed, text, draw))
                log_probs = torch.distributions.Normal(mean, 1.0).log_prob(actions).sum(-1)
                words = " ".join(f"{value:.4f}" for value in actions.flatten().tolist())
                made.append(Rollout(prompt, words, (Actions(actions),), log_probs, decoding, (TextPart(text=words),)))
        return tuple(made)


class Near(Reward):
    """How near the actions come to the first two numbers of the state; higher is better, 0 is best."""

    def score(self, items: Sequence[Judged]) -> list[float]:
        return [self._one(numbers(text_of(item.prompt[-1].parts)), numbers(item.output)) for item in items]

    def _one(self, state: list[float], actions: list[float]) -> float:
        return -sum((action - state[at % ACTION]) ** 2 for at, action in enumerate(actions)) / len(actions)


class Length(Reward):
    def score(self, items: Sequence[Judged]) -> list[float]:
        return [float(len(numbers(item.output)) // ACTION) for item in items]


def online_objective(name: str) -> Objective:
    """Return an objective of each way to depend on the rest of a round."""
    if name == "ppo_max":
        return PPO(PPOMaxConfig(value_weight=0.5, value_warmup=1))
    if name == "online_dpo":
        return OnlineDPO(OnlineDPOConfig(beta=0.5))
    configs = {"grpo": GRPOConfig(kl_weight=0.1), "rloo": RLOOConfig(scale="batch"), "reinforce_pp": ReinforcePPConfig()}
    return PolicyGradient(configs[name])
