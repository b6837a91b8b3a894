"""TRL 1.16's GRPO and RLOO trainers as judges: advantages of responses that they drew themselves, and losses with gradients.

Old log-probabilities are moved away from the policy's own, so that ratios leave 1 and clipping takes effect.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toys.scored import example, feedback_of
from toys.trl_models import World, assert_same, scored

from polyalign.objectives.base import Experience, FeedbackTensors
from polyalign.objectives.online_config import (
    BNPOConfig,
    CISPOConfig,
    DAPOConfig,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    PolicyGradientConfig,
    RLOOConfig,
)
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.policies.base import Scores

pytest.importorskip("trl", reason="the oracle trl is not installed; see requirements-dev.txt")

GROUP, LONGEST = 4, 6
PROMPTS = [{"prompt": text} for text in ("a b c", "b") for _ in range(GROUP)]


def by_ids(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs from response to response."""
    return [(sum(ids) % 7) / 3 + 0.1 * len(ids) for ids in completion_ids]


def build(trainer: type, config: type, world: World, **options: Any) -> Any:
    from datasets import Dataset

    settings = world.settings(config, num_generations=GROUP, max_completion_length=LONGEST, beta=0.0, **options)
    settings.per_device_train_batch_size = settings.per_device_eval_batch_size = len(PROMPTS)
    made = trainer(
        model=world.policy,
        reward_funcs=by_ids,
        args=settings,
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=world.tokenizer,
    )
    made.num_generations_eval = GROUP
    made.model.eval()
    return made


@pytest.fixture(scope="module")
def grpo(world: World) -> Any:
    from trl import GRPOConfig as TrlConfig
    from trl import GRPOTrainer

    return build(GRPOTrainer, TrlConfig, world)


@pytest.fixture(scope="module")
def rloo(world: World) -> Any:
    from trl import RLOOConfig as TrlConfig
    from trl import RLOOTrainer
    from trl.trainer.rloo_trainer import add_fused_lm_head

    made = build(RLOOTrainer, TrlConfig, world)
    add_fused_lm_head(world.reference, temperature=1.0)  # as it does to a reference that it loads itself
    made.ref_model = world.reference
    return made


def drawn(trainer: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return trainer._generate_and_score_completions([dict(row) for row in PROMPTS])


def ours(world: World, batch: dict[str, torch.Tensor]) -> tuple[Scores, Scores]:
    """Score the completions by plain forward passes of policy and reference, one decision per completion token."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    answer = torch.cat([torch.zeros_like(batch["prompt_mask"]), batch["completion_mask"]], 1)

    def completion(scores: Scores) -> Scores:
        width = batch["completion_ids"].shape[1]
        return Scores(scores.log_probs[..., -width:], scores.mask[..., -width:], scores.kind[..., -width:])

    with torch.no_grad():
        reference = completion(scored(world.reference, ids, attention, answer))
    return completion(scored(world.policy, ids, attention, answer)), reference


def experience_of(batch: dict[str, torch.Tensor], scores: Scores, reference: Scores, drift: float = 0.5) -> Experience:
    draw = torch.Generator().manual_seed(1)
    old = scores.log_probs.detach() + drift * torch.randn(scores.log_probs.shape, generator=draw)
    rewards = torch.tensor(by_ids([], [], [ids[kept.bool()].tolist() for ids, kept in completions(batch)]))
    return Experience(rewards, torch.zeros_like(rewards), old, reference.log_probs, longest=LONGEST)


def completions(batch: dict[str, torch.Tensor]) -> Any:
    return zip(batch["completion_ids"], batch["completion_mask"], strict=True)


def groups() -> FeedbackTensors:
    return feedback_of(*(example(GROUP) for _ in range(len(PROMPTS) // GROUP)))


def loss(config: PolicyGradientConfig, scores: Scores, reference: Scores, experience: Experience) -> torch.Tensor:
    feedback = groups()
    feedback.experience = experience
    terms = PolicyGradient(config)(scores, {"reference": reference}, feedback)
    return sum(term.sum / term.weight for term in terms.values())


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_equal_trls(world: World, grpo: Any, scale: str) -> None:
    grpo.scale_rewards, grpo.beta = scale, 0.0
    batch = drawn(grpo)
    experience = experience_of(batch, *ours(world, batch))
    found = PolicyGradient(GRPOConfig(scale=scale)).appraise(experience, batch["completion_mask"][:, None].bool(), groups().group)
    assert experience.rewards.std() > 0.1
    torch.testing.assert_close(found.advantages, batch["advantages"], atol=1e-5, rtol=1e-5)


# name of TRL's loss, its level of the ratio, and our objective
LOSSES = [
    ("grpo", "token", GRPOConfig()),
    ("grpo", "token", GRPOConfig(clip_low=0.1, clip_high=0.3, dual_clip=1.5)),
    ("dr_grpo", "token", DrGRPOConfig()),
    ("bnpo", "token", BNPOConfig()),
    ("dapo", "token", DAPOConfig()),
    ("grpo", "sequence", GSPOConfig(clip_low=0.05, clip_high=0.1)),
    ("cispo", "token", CISPOConfig(clip_high=0.2)),
]


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize(("kind", "level", "config"), LOSSES, ids=lambda value: type(value).__name__ if value else "")
def test_losses_and_gradients_equal_trls(
    world: World, grpo: Any, kind: str, level: str, config: PolicyGradientConfig, kl_weight: float
) -> None:
    grpo.scale_rewards, grpo.beta = "group", 0.0  # it has no reference of its own to score the draw with
    batch = drawn(grpo)
    scores, reference = ours(world, batch)
    experience = replace(experience_of(batch, scores, reference), advantages=batch["advantages"])
    grpo.loss_type, grpo.importance_sampling_level, grpo.beta = kind, level, kl_weight
    grpo.epsilon_low, grpo.epsilon_high, grpo.args.delta = config.clip_low, config.clip_high, config.dual_clip
    if kind == "cispo":
        grpo.epsilon_high = 1 + config.clip_high
    assert experience.old_log_probs is not None
    theirs = grpo._compute_loss(
        world.policy,
        batch | {"old_per_token_logps": experience.old_log_probs[:, 0], "ref_per_token_logps": reference.log_probs[:, 0]},
    )
    mine = loss(config.model_copy(update={"kl_weight": kl_weight}), scores, reference, experience)
    assert abs(theirs.item()) > 1e-3
    assert_same(world.policy, mine, theirs)


@pytest.mark.parametrize("normalise", [False, True])
def test_rloo_advantages_and_loss_equal_trls(world: World, rloo: Any, normalise: bool) -> None:
    """The KL penalty is in the reward, summed over the response; the ratio is the whole response's."""
    rloo.beta, rloo.normalize_advantages = 0.3, normalise
    batch = drawn(rloo)
    scores, reference = ours(world, batch)
    mask = batch["completion_mask"][:, None].bool()
    settings = RLOOConfig(kl_weight=0.3, scale="batch" if normalise else "none")
    experience = PolicyGradient(settings).appraise(experience_of(batch, scores, reference, drift=0.0), mask, groups().group)
    torch.testing.assert_close(experience.advantages, batch["advantages"], atol=2e-5, rtol=1e-5)

    moved = replace(experience_of(batch, scores, reference, drift=0.1), advantages=experience.advantages)
    assert moved.old_log_probs is not None
    old = (moved.old_log_probs[:, 0] * batch["completion_mask"]).sum(-1)
    theirs = rloo._compute_loss(world.policy, batch | {"old_logps": old})
    assert_same(world.policy, loss(settings, scores, reference, moved), theirs)
