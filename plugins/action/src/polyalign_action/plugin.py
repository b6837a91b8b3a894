"""What this distribution adds to polyalign. Light: importing it costs milliseconds."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import (
    TOKEN_POLICY_PROVIDES,
    DatasetSpec,
    ImporterSpec,
    ModalitySpec,
    ObjectiveSpec,
    PolicySpec,
    RecipeSpec,
    RewardSpec,
)


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
            summary="a perceptron or transformer that acts in gymnasium environments, by discrete or real-valued actions",
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
            name="diffusion-policy",
            summary="Diffusion Policy: chunks of real-valued actions in gymnasium environments, drawn by denoising",
            target="polyalign_action.diffusion_policy:build",
            config="polyalign_action.diffusion_config:DiffusionPolicyConfig",
            requires=("torch", "gymnasium"),
            family="denoising",
            inputs=("text",),
            outputs=("trajectory",),
            provides=("log_probs", "predictions"),
            fixture="polyalign_action.diffusion_fixture:fixture",
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
            fixture="polyalign_action.reach_fixture:uniact_fixture",
        ),
        PolicySpec(
            name="action-tokens",
            summary="a causal language model that acts: observations and actions are words of its vocabulary",
            target="polyalign_action.action_tokens:build",
            config="polyalign_action.action_tokens_config:ActionTokensConfig",
            requires=("torch", "transformers", "gymnasium"),
            family="tokens",
            inputs=("text",),
            outputs=("trajectory",),
            provides=tuple(name for name in TOKEN_POLICY_PROVIDES if name != "token_targets"),  # no teacher acts
            switches={"values": "value_head"},
            fixture="polyalign_action.reach_fixture:tokens_fixture",
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
        ),
    ]


@hookimpl
def polyalign_importers() -> Iterable[ImporterSpec]:
    return [
        ImporterSpec(
            name="lerobot",
            summary="LeRobot data sets, version 3: states and actions; videos are left out",
            target="polyalign_action.layouts.lerobot:LeRobot",
            requires=("gymnasium",),
            layout="meta/info.json, meta/tasks.parquet, meta/episodes/*/*.parquet, data/*/*.parquet with observation.*, action",
            inputs=("text", "trajectory"),
            unverified="no data set of the hub was read; the layout is that of lerobot's documentation",
            exporter="polyalign_action.layouts.lerobot:write",
        ),
        ImporterSpec(
            name="minari",
            summary="Minari data sets (HDF5): episodes with numbers, or dictionaries of numbers, as observations",
            target="polyalign_action.layouts.minari:Minari",
            requires=("gymnasium", "h5py"),
            layout="data/main_data.hdf5 of episode_N with observations, actions, rewards, terminations, truncations[, infos]",
            inputs=("text", "trajectory"),
            unverified="no data set of Minari's server was read; minari 0.5 reads what we write",
            exporter="polyalign_action.layouts.minari:write",
        ),
    ]


@hookimpl
def polyalign_recipes() -> Iterable[RecipeSpec]:
    summaries = {
        "dpo-cartpole": "DPO on scripted episodes of CartPole, ranked by how long the pole stood",
        "grpo-cartpole": "GRPO on CartPole: episodes from one starting state are compared with each other",
        "ppo-cartpole": "PPO on CartPole, with a critic and a reward for every action",
        "bc-button-press": "Behaviour cloning of good and bad episodes of a Meta-World arm, all alike",
        "diffusion-button-press": "Diffusion Policy: an expert's episodes of a Meta-World arm, imitated chunk by chunk",
        "cpl-button-press": "CPL on ranked episodes of a Meta-World arm: no reward model, no environment while training",
        "uniact-reach": "UniAct: one policy for four bodies, from demonstrations of one task",
        "uniact-adapt": "UniAct: a new body learns from eight demonstrations, by a head of its own",
        "uniact-dpo": "DPO on trajectories of four bodies: going where the mission says is preferred",
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
        ),
        DatasetSpec(
            name="manipulation",
            summary="episodes of a Meta-World arm and of BabyAI by experts, perturbed, slow or wrong: ranked by the environment",
            target="polyalign_action.shipped:manipulation",
            licence="Apache-2.0",
        ),
        DatasetSpec(
            name="reach-episodes",
            summary="experts of five bodies that go where a mission says, or elsewhere: ranked pairs per scene",
            target="polyalign_action.shipped:reach_episodes",
            licence="Apache-2.0",
        ),
    ]
