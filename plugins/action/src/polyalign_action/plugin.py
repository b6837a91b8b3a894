"""What this distribution adds to polyalign. Light: importing it costs milliseconds."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import DatasetSpec, ModalitySpec, ObjectiveSpec, PolicySpec, RecipeSpec, RewardSpec


@hookimpl
def polyalign_modalities() -> Iterable[ModalitySpec]:
    return [
        ModalitySpec(
            name="trajectory",
            summary="an episode: observations, actions and rewards, as safetensors",
            target="polyalign_action.trajectory:TrajectoryModality",
            mimes=("application/x-trajectory+safetensors",),
        )
    ]


@hookimpl
def polyalign_policies() -> Iterable[PolicySpec]:
    return [
        PolicySpec(
            name="action",
            summary="a multilayer perceptron that acts in gymnasium environments, by discrete or real-valued actions",
            target="polyalign_action.policy:build",
            config="polyalign_action.config:ActionConfig",
            requires=("torch", "gymnasium"),
            family="continuous",
            inputs=("text",),
            outputs=("trajectory",),
            provides=("log_probs", "entropy", "hidden", "states"),
            switches={"values": "value_head"},
            fixture="polyalign_action.fixture:fixture",
        ),
        PolicySpec(
            name="uniact",
            summary="UniAct: one policy for several bodies, by codes of a shared codebook and a head for each body",
            target="polyalign_action.uniact:build",
            config="polyalign_action.uniact_config:UniActConfig",
            requires=("torch", "gymnasium"),
            family="continuous",
            inputs=("text",),
            outputs=("trajectory",),
            provides=("log_probs", "entropy", "hidden", "states", "codes"),
            switches={"values": "value_head"},
            fixture="polyalign_action.uniact_fixture:fixture",
        ),
    ]


@hookimpl
def polyalign_objectives() -> Iterable[ObjectiveSpec]:
    return [
        ObjectiveSpec(
            name="uniact",
            summary="Imitation through a codebook: the likelihood of the actions shown, and, if asked, an even use of the codes",
            target="polyalign_action.uniact_objective:UniActCloning",
            config="polyalign_action.uniact_config:UniActObjectiveConfig",
            source="Zheng et al. 2025, arXiv 2501.10105; 2toinf/UniAct @ 6786cf0",
            view="sft",
            needs=("codes",),
        )
    ]


@hookimpl
def polyalign_rewards() -> Iterable[RewardSpec]:
    return [
        RewardSpec(
            name="return",
            summary="the (discounted) sum of the rewards that the environment paid in an episode",
            target="polyalign_action.rewards:ReturnReward",
            config="polyalign_action.config:ReturnConfig",
            inputs=("trajectory",),
        )
    ]


@hookimpl
def polyalign_recipes() -> Iterable[RecipeSpec]:
    summaries = {
        "dpo-cartpole": "DPO on scripted episodes of CartPole, ranked by how long the pole stood",
        "grpo-cartpole": "GRPO on CartPole: episodes from one starting state are compared with each other",
        "ppo-cartpole": "PPO on CartPole, with a critic and a reward for every action",
    }
    return [
        RecipeSpec(name=f"action/{name}", summary=summary, target=f"polyalign_action:recipes/{name}.yaml")
        for name, summary in summaries.items()
    ]


@hookimpl
def polyalign_datasets() -> Iterable[DatasetSpec]:
    return [
        DatasetSpec(
            name="cartpole-episodes",
            summary="two scripted episodes of CartPole-v1 per starting state, ranked by how long the pole stood",
            target="polyalign_action.shipped:cartpole_episodes",
            licence="Apache-2.0",
        )
    ]
