"""What a round of rollouts is made of: who answers, who judges, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys.gaussian import ACTION, ListSource, numbers, pair_examples
from toys.rolling import ONLINE, Length, Near, RollingPolicy, online_objective
from toys.worker import recipe

from polyalign.config import read_recipe
from polyalign.errors import ConfigError, RewardError, TrainingError
from polyalign.objectives.base import Objective
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.online_config import GRPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.policy_gradient import PolicyGradient
from polyalign.objectives.supervised import SFT
from polyalign.policies.base import Actions, Rollout
from polyalign.policies.reference import FrozenCopy
from polyalign.rewards.base import Judged, Reward
from polyalign.training.batches import Steps
from polyalign.training.config import LagConfig, OnlineConfig, TrainingConfig
from polyalign.training.online import RolloutSteps
from polyalign.training.rollouts import Judges, preferences
from polyalign.training.trainer import Trainer


class Constant(Reward):
    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, items: Any) -> list[float]:
        return [self.value] * len(items)


class Counting(RollingPolicy):
    """Remembers every prompt that it was asked to answer, and with which seed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, str]] = []

    def generate(self, prompts: Any, *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any) -> Any:
        self.asked += [(seed, prompt[-1].parts[0].text) for prompt in prompts]
        return super().generate(prompts, samples_per_prompt=samples_per_prompt, seed=seed, **decoding)


def steps(
    objective: Objective, policy: RollingPolicy | None = None, reward: Reward | None = None, count: int = 12, **online: Any
) -> RolloutSteps:
    policy = policy or RollingPolicy()
    config = OnlineConfig.model_validate(ONLINE | {"minibatches": 1, "epochs": 1} | online)
    judges = Judges(config, {"near": reward or Near()}, {"length": Length()})
    source = ListSource(pair_examples(12)[:count])
    return RolloutSteps(source, policy, objective, FrozenCopy(policy), judges, config, TrainingConfig(batch_size=4))


def test_a_round_serves_its_steps_and_is_drawn_once() -> None:
    policy = Counting()
    made = steps(PolicyGradient(), policy, minibatches=2, epochs=2)
    windows = [made[step] for step in range(5)]
    assert len(policy.asked) == 2 * 4 + 2 * 4  # two rounds of two minibatches of four prompts
    ids = [tuple(micro.record_ids for micro in window.micro_batches) for window in windows]
    assert ids[0] == ids[2] != ids[1] == ids[3] != ids[4]


def test_a_policy_may_draw_each_round_in_its_own_way() -> None:
    class Growing(RollingPolicy):
        def decoding_at(self, decoding: dict[str, Any], round_number: int) -> dict[str, Any]:
            return decoding | {"longest": 1 + round_number}

    made = steps(PolicyGradient(), Growing(), minibatches=2)
    assert [made[step].micro_batches[0].batch.mask.shape[-1] for step in range(5)] == [1, 1, 2, 2, 3]


def test_weights_that_lag_answer_and_the_others_learn(tmp_path: Path) -> None:
    """All of the average kept: every round is answered by the starting weights, and only the ratio tells the weights apart. None
    kept is no lag."""
    answers: dict[float | None, list[list[float]]] = {}
    for kept in (1.0, 0.0, None):
        policy = RollingPolicy()
        judges = Judges(OnlineConfig.model_validate(ONLINE), {"near": Near()}, {})
        lag = {} if kept is None else {"lag": {"growth": kept, "most": kept}}
        asked = recipe(
            {"steps": 3, "batch_size": 4, "optimizer": {"learning_rate": 0.1}}, ONLINE | {"minibatches": 1, "epochs": 1} | lag
        )
        seen: list[list[float]] = []

        def generate(prompts: Any, own: RollingPolicy = policy, seen: list[list[float]] = seen, **options: Any) -> Any:
            seen.append([float(value) for value in own.mean.weight.flatten()])
            return RollingPolicy.generate(own, prompts, **options)

        policy.generate = generate  # type: ignore[method-assign]
        Trainer(
            asked,
            policy,
            online_objective("grpo"),
            FrozenCopy(policy),
            ListSource(pair_examples(12)),
            None,
            tmp_path / str(kept),
            judges,
        ).train()
        answers[kept] = seen
        assert seen[-1] != [float(value) for value in policy.mean.weight.flatten()]
    assert answers[1.0][0] == answers[1.0][1] == answers[1.0][2]
    assert answers[0.0] == answers[None]
    assert answers[None][0] != answers[None][1] != answers[None][2]


def test_the_share_that_a_lagging_average_keeps_grows_with_the_rounds() -> None:
    """DiffusionNFT's two schedules: 0.001 a round up to one half, and nothing for 75 rounds, then 0.0075 a round up to 0.999."""
    slow, late = LagConfig(), LagConfig(growth=0.0075, flat=75, most=0.999)
    assert [slow.kept(number) for number in (0, 100, 500, 900)] == pytest.approx([0, 0.1, 0.5, 0.5])
    assert [late.kept(number) for number in (0, 75, 77, 400)] == pytest.approx([0, 0, 0.015, 0.999])


def test_a_prompt_that_comes_twice_in_a_round_is_answered_anew() -> None:
    (micro,) = steps(PolicyGradient(), count=2)[0].micro_batches
    actions = micro.batch.tensors["actions"].reshape(4, 3, -1)
    by_record = {name: [row for row, own in enumerate(micro.record_ids) if own == name] for name in micro.record_ids}
    assert [len(rows) for rows in by_record.values()] == [2, 2]
    for first, second in by_record.values():
        assert not torch.equal(actions[first], actions[second])


def test_old_log_probs_and_rewards_stand_at_their_decisions() -> None:
    policy = RollingPolicy()
    (micro,) = steps(PolicyGradient(), policy)[0].micro_batches
    experience = micro.feedback.experience
    assert experience is not None and experience.old_log_probs is not None
    scores = policy(micro.batch)
    torch.testing.assert_close(experience.old_log_probs[micro.batch.mask], scores.log_probs[micro.batch.mask])
    texts = [sample.response[0].text for sample in micro.batch.samples]  # type: ignore[union-attr]
    prompts = [sample.prompt for sample in micro.batch.samples]
    again = Near().score([Judged(prompt, text) for prompt, text in zip(prompts, texts)])
    assert experience.rewards.tolist() == pytest.approx(again)


def test_objectives_of_preferences_score_no_more_than_best_and_worst() -> None:
    (micro,) = steps(DPO(DPOConfig()))[0].micro_batches
    assert len(micro.batch) == 2 * 4 and len(micro.feedback.edges) == 4
    rewards = micro.feedback.experience.rewards  # type: ignore[union-attr]
    assert (rewards[micro.feedback.edges.better] > rewards[micro.feedback.edges.worse]).all()
    (micro,) = steps(DPO(DPOConfig()), pairs="all")[0].micro_batches
    assert len(micro.batch) == 3 * 4 and len(micro.feedback.edges) == 3 * 4


def test_preferences_of_rewards() -> None:
    assert [(e.better, e.worse) for e in preferences([1.0, 3.0, 0.0, 3.0], "best_worst")] == [(1, 2)]
    assert {(e.better, e.worse) for e in preferences([1.0, 3.0, 3.0], "all")} == {(1, 0), (2, 0)}
    assert preferences([2.0, 2.0], "best_worst") == preferences([2.0, 2.0], "all") == ()


def test_groups_that_teach_nothing_make_way_for_other_prompts() -> None:
    """Every response earns the same, so each of the four places is tried three times over; without resample once."""
    policy = Counting()
    steps(PolicyGradient(), policy, Constant(1.0), resample=2)[0]
    assert len(policy.asked) == 4 * 3
    assert len({seed for seed, _ in policy.asked}) >= 3
    policy = Counting()
    metrics = steps(PolicyGradient(), policy, Constant(1.0))[0].metrics
    assert len(policy.asked) == 4 and metrics["rollout/flat_groups"] == 1.0
    policy = Counting()
    steps(PolicyGradient(), policy, Near(), resample=2)[0]
    assert len(policy.asked) == 4


def test_overlong_responses_are_punished_softly() -> None:
    """DAPO, eq. 13 with a limit of 10 and a buffer of 4: nothing up to 6, a quarter per decision after it, all at 10."""
    config = OnlineConfig.model_validate({"rewards": [{"name": "x"}], "overlong": {"buffer": 4, "penalty": 2.0}})
    lengths = [1, 6, 7, 9, 10]
    made = [Rollout((), "", (Actions(torch.zeros(n, 1)),), torch.zeros(n), {"max_new_tokens": 10}) for n in lengths]
    groups = Judges(config, {"x": Constant(1.0)}, {}).groups([str(n) for n in lengths], made, 1)
    assert [group.rewards[0] for group in groups] == [1.0, 1.0, 0.5, -0.5, -1.0]
    with pytest.raises(TrainingError, match="drop it"):
        Judges(config, {"x": Constant(1.0)}, {}).groups(["r"], [Rollout((), "", (), torch.zeros(3))], 1)


def test_rewards_are_weighed_and_held_out_ones_are_not_trained_on() -> None:
    config = OnlineConfig.model_validate({"rewards": [{"name": "a"}, {"name": "b"}], "weights": [2.0, -1.0]})
    judges = Judges(config, {"a": Constant(3.0), "b": Constant(1.0)}, {"c": Constant(100.0)})
    (group,) = judges.groups(["r"], [Rollout((), "", (), torch.zeros(1))], 1)
    assert group.rewards == (5.0,)
    assert dict(group.judgements) == {"a": (3.0,), "b": (1.0,), "held_out/c": (100.0,)}
    with pytest.raises(RewardError, match="finite"):
        Judges(config, {"a": Constant(float("nan")), "b": Constant(0.0)}, {}).groups(
            ["r"], [Rollout((), "", (), torch.zeros(1))], 1
        )


def test_demonstrations_join_every_step_and_want_an_objective_that_imitates(tmp_path: Path) -> None:
    shown = ListSource(pair_examples(4))
    made = steps(PolicyGradient(GRPOConfig(sft_weight=1.0)))
    made.demonstrations = Steps(shown, made.policy.collator, TrainingConfig(batch_size=2))
    micro_batches = made[0].micro_batches
    assert [micro.feedback.experience is None for micro in micro_batches] == [False, True]

    plan = recipe({"steps": 1}, ONLINE | {"minibatches": 1, "epochs": 1})
    assert plan.online is not None
    judges = Judges(plan.online, {"near": Near()}, {})

    def build(objective: Objective, demonstrations: ListSource | None) -> Trainer:
        policy = RollingPolicy()
        return Trainer(plan, policy, objective, FrozenCopy(policy), shown, None, tmp_path, judges, demonstrations)

    with pytest.raises(TrainingError, match="add online.demonstrations"):
        build(PolicyGradient(GRPOConfig(sft_weight=1.0)), None)
    with pytest.raises(TrainingError, match="set objective.sft_weight"):
        build(PolicyGradient(), shown)


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_pp", "online_dpo", "best of n"])
def test_the_policy_comes_to_do_what_is_rewarded(tmp_path: Path, name: str) -> None:
    """Policy gradients, preferences and imitation of the best of each group all move the mean action towards what the reward
    wants, the state's first two numbers: its squared error on states never trained on at least halves."""
    objective = SFT() if name == "best of n" else online_objective(name)
    training = {"steps": 40, "batch_size": 8, "optimizer": {"learning_rate": 0.05}}
    plan = recipe(training, ONLINE | {"minibatches": 1, "epochs": 1, "samples_per_prompt": 8, "pairs": "all"})
    assert plan.online is not None
    policy, examples = RollingPolicy(), pair_examples(32)

    def error() -> float:
        states = torch.tensor([numbers(example.samples[0].prompt[-1].parts[0].text) for example in examples[24:]])  # type: ignore[union-attr]
        return float((policy.mean(states) - states[:, :ACTION]).square().mean())

    before = error()
    judges = Judges(plan.online, {"near": Near()}, {"length": Length()})
    Trainer(plan, policy, objective, FrozenCopy(policy), ListSource(examples[:24]), None, tmp_path, judges).train()
    assert error() < before / 2


RECIPE = """
name: x
policy: {name: text, base: somewhere}
data: {train: [{path: "dataset:text-constraints"}]}
objective: OBJECTIVE
"""
WITH_ONLINE = RECIPE + "online: {rewards: [constraints], minibatches: 2, epochs: 2}\n"


@pytest.mark.parametrize(
    ("text", "objective", "overrides", "told"),
    [
        (RECIPE, "grpo", (), "online: missing; the policy answers prompts itself"),
        (WITH_ONLINE, "dpo", (), "drop it, or write data.view: prompts"),
        (WITH_ONLINE, "grpo", ("data.view=pairs",), "gives no rollouts"),
        (WITH_ONLINE, "ppo", (), "policy.value_head: 'ppo' needs values: set it to true"),
        (WITH_ONLINE, "grpo", ("training.checkpoint.every=6",), "not a multiple of 4"),
        (WITH_ONLINE, "grpo", ("training.micro_batch_budget=100",), "does not go with online"),
        (WITH_ONLINE, "grpo", ("reference.cache=true",), "does not go with online"),
        (WITH_ONLINE, "grpo", ("online.weights=[1,2]",), "2 weights for 1 rewards"),
        (WITH_ONLINE, "grpo", ("online.rewards=[constraint]",), "constraints"),
        (WITH_ONLINE, "grpo", ("online.sample_per_prompt=4",), "samples_per_prompt"),
    ],
)
def test_recipes_that_cannot_be_are_refused_with_a_way_out(
    text: str, objective: str, overrides: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(text.replace("OBJECTIVE", objective), overrides)
    assert told in str(caught.value)


def test_a_resolved_online_recipe_reads_itself() -> None:
    resolved = read_recipe(WITH_ONLINE.replace("OBJECTIVE", "grpo"), ("online.held_out_rewards=[distinct]",))
    again = read_recipe(resolved.to_yaml())
    assert again.to_yaml() == resolved.to_yaml()
    assert [spec.name for spec, _ in again.online_rewards] == ["constraints"]
    assert [spec.name for spec, _ in again.held_out_rewards] == ["distinct"]
    assert again.view == "prompts"
    ipo = read_recipe(WITH_ONLINE.replace("OBJECTIVE", "ipo"), ("data.view=prompts",))
    assert ipo.view == "prompts"
