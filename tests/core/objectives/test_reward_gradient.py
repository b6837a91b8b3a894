"""DRaFT-K and ReFL on a linear denoiser: against a plain loop over the sampler's steps, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from toys.denoiser import SIZE, LinearDenoiser

from polyalign.errors import ConfigError, TrainingError
from polyalign.objectives.online_denoising_config import DRaFTConfig, ReFLConfig, RewardGradientConfig
from polyalign.objectives.reward_gradient import RewardGradient
from polyalign.policies.config import SamplerConfig
from polyalign.policies.samplers import steps_of
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Example, Sample
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged, Reward
from polyalign.training.batches import MicroBatch, at_epoch, collate_examples
from polyalign.training.window import WindowLoss

TEXTS = ("draw", "draw more", "draw most")


class Nearness(Reward):
    """Minus the squared distance of a response to ones, and a bonus for the length of its prompt."""

    name = "nearness"

    def score(self, items: Sequence[Judged]) -> list[float]:
        raise NotImplementedError

    def on_tensors(self, media: Tensor, prompts: Sequence[tuple[Message, ...]]) -> Tensor:
        bonus = torch.tensor([float(len(prompt[0].parts[0].text)) for prompt in prompts])
        return bonus - (media - 1).square().sum(1)


def objective_of(config: RewardGradientConfig) -> RewardGradient:
    made = RewardGradient(config)
    made._reward.append(Nearness())
    return made


def micro_batch(policy: LinearDenoiser, texts: Sequence[str] = TEXTS, epoch: int = 0) -> MicroBatch:
    samples = [Sample(text, (Message(role="user", parts=text),), (), f"key {text}", epoch=epoch) for text in texts]
    examples = [at_epoch(Example(sample.id, (sample,)), epoch) for sample in samples]
    policy.encode_missing(samples)
    return collate_examples(examples, policy.collator)


def by_a_plain_loop(policy: LinearDenoiser, text: str, config: RewardGradientConfig, epoch: int = 0) -> Tensor:
    """Return the reward of one sample; gradients flow where the method lets them."""
    key = (policy.collator.seed, f"key {text}", f"epoch {epoch}", "sample")
    sampler = config.sampler
    steps = steps_of("flow", policy.sampling_grid(sampler.steps), sampler)
    stop = None
    if isinstance(config, ReFLConfig):
        low, high = config.late
        stop = int(torch.randint(low, high + 1, (), generator=keyed_generator(*key, "stop")))
    x = torch.randn(SIZE, generator=keyed_generator(*key, -1))
    for number, step in enumerate(steps):

        def predict(scale: float, x: Tensor = x, t: float = step.timestep) -> Tensor:
            return policy.layer(x) + t / 100 + scale * len(text) / 10

        p = predict(1.0)
        if sampler.guidance > 1:
            p = predict(0.0) + sampler.guidance * (p - predict(0.0))
        if number == stop:
            x = step.clean[0] * x + step.clean[1] * p
            break
        x = step.state * x + step.prediction * p
        if stop is not None or number < len(steps) - config.last:
            x = x.detach()
        if step.std:
            x = x + step.std * torch.randn(SIZE, generator=keyed_generator(*key, number))
    return len(text) - (2 * x - 1).square().sum()


DRAFT = [
    DRaFTConfig(sampler=SamplerConfig(steps=5), last=1),
    DRaFTConfig(sampler=SamplerConfig(steps=5), last=3),
    DRaFTConfig(sampler=SamplerConfig(steps=5), last=5),
    DRaFTConfig(sampler=SamplerConfig(steps=5, guidance=2.5), last=2),
    DRaFTConfig(sampler=SamplerConfig(steps=5, kind="sde"), last=4),
    DRaFTConfig(sampler=SamplerConfig(steps=5), last=2, ceiling=8.0, weight=0.5),
]
REFL = [
    ReFLConfig(sampler=SamplerConfig(steps=6), late=(2, 5), ceiling=None, weight=1.0),
    ReFLConfig(sampler=SamplerConfig(steps=6, guidance=2.0), late=(3, 3), ceiling=7.0, weight=0.1),
    ReFLConfig(sampler=SamplerConfig(steps=6, kind="sde"), late=(0, 5), ceiling=None, weight=1.0),
]


@pytest.mark.parametrize("config", [*DRAFT, *REFL])
def test_rewards_and_gradients_are_those_of_a_plain_loop(config: RewardGradientConfig) -> None:
    policy = LinearDenoiser("flow")
    objective = objective_of(config)
    values = WindowLoss(policy, None, objective, "cpu").train([micro_batch(policy, epoch=1)], lambda loss, last: loss.backward())
    ours = policy.layer.weight.grad.clone()
    policy.zero_grad()
    rewards = torch.stack([by_a_plain_loop(policy, text, config, epoch=1) for text in TEXTS])
    losses = -rewards if config.ceiling is None else (config.ceiling - rewards).clamp(min=0)
    (config.weight * losses).mean().backward()
    assert values["reward"] == pytest.approx(rewards.mean().item(), rel=1e-4)
    assert values["loss/reward"] == pytest.approx(config.weight * losses.mean().item(), rel=1e-4)
    torch.testing.assert_close(ours, policy.layer.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [DRAFT[1], REFL[0]])
def test_splitting_a_window_changes_nothing(config: RewardGradientConfig) -> None:
    """Also where each sample of ReFL stops: it is keyed by the sample, not drawn for the batch."""
    gradients = []
    for parts in ([TEXTS], [TEXTS[:1], TEXTS[1:]]):
        policy = LinearDenoiser("flow")
        micros = [micro_batch(policy, part) for part in parts]
        WindowLoss(policy, None, objective_of(config), "cpu").train(micros, lambda loss, last: loss.backward())
        gradients.append(policy.layer.weight.grad)
    torch.testing.assert_close(*gradients)


def test_epochs_have_noise_of_their_own() -> None:
    policy = LinearDenoiser("flow")
    objective = objective_of(DRAFT[0])
    window = WindowLoss(policy, None, objective, "cpu")
    first, again, later = (window.evaluate([micro_batch(policy, epoch=epoch)])["reward"] for epoch in (0, 0, 1))
    assert first == again != later


def test_only_steps_with_a_gradient_are_computed_twice() -> None:
    """Three prompts, five steps, the last two checkpointed: 15 rows forward, 6 again for the backward pass."""
    policy = LinearDenoiser("flow")
    micro = micro_batch(policy)
    WindowLoss(policy, None, objective_of(DRaFTConfig(sampler=SamplerConfig(steps=5), last=2)), "cpu").train(
        [micro], lambda loss, last: loss.backward()
    )
    assert policy.rows_denoised == 15 + 6


@pytest.mark.parametrize("config", [DRAFT[0], DRAFT[4], REFL[0]], ids=["draft_k 1", "draft_k 4 sde", "refl"])
def test_training_raises_the_reward(config: RewardGradientConfig) -> None:
    policy = LinearDenoiser("flow")
    window = WindowLoss(policy, None, objective_of(config), "cpu")
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    held_out = [micro_batch(policy, epoch=99)]
    before = window.evaluate(held_out)["reward"]
    for epoch in range(15):
        window.train([micro_batch(policy, epoch=epoch)], lambda loss, last: loss.backward())
        optimizer.step()
        optimizer.zero_grad()
    assert window.evaluate(held_out)["reward"] > before + 0.5


def test_what_is_missing_or_wrong_is_said() -> None:
    policy = LinearDenoiser("flow")
    with pytest.raises(ConfigError, match="objective.reward is missing"):
        RewardGradient(DRaFTConfig()).attach(policy, [])

    class Plain(Nearness):
        on_tensors = Reward.on_tensors

    objective = RewardGradient(DRaFTConfig())
    objective._reward.append(Plain())
    with pytest.raises(ConfigError, match="'nearness' is not differentiable"):
        objective.attach(policy, [])
    with pytest.raises(ValueError, match="more than sampler.steps=20"):
        DRaFTConfig(last=21)
    with pytest.raises(ValueError, match="two steps in order"):
        ReFLConfig(late=(35, 40))
    with pytest.raises(TrainingError, match="give it a GradientPlan"):
        policy(micro_batch(policy).batch, frozenset({"samples"}))
