"""Online objectives that only denoising models have, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

_NO_NOISE = "it compares noise predictions, and this family predicts decisions; use grpo"
_NO_SAMPLER = "a reward's gradient cannot pass through decisions that are drawn; use grpo"
_OTHERS = ("tokens", "continuous", "features")
_REASONS = dict.fromkeys(_OTHERS, _NO_NOISE)
_GRADIENT_REASONS = dict.fromkeys(_OTHERS, _NO_SAMPLER)

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="diffusion_nft",
        summary="DiffusionNFT: good responses draw the denoiser's prediction, bad ones push it; no likelihoods, any sampler",
        target="polyalign.objectives.solver_free:DiffusionNFT",
        config="polyalign.objectives.online_denoising_config:DiffusionNFTConfig",
        source="Zheng et al. 2025, arXiv 2509.16117, eq. 5",
        needs=("rollouts", "predictions"),
        view="prompts",
        unsupported=_REASONS,
    ),
    ObjectiveSpec(
        name="awm",
        summary="Advantage Weighted Matching: the clipped policy gradient on the matching loss of pretraining; any sampler",
        target="polyalign.objectives.solver_free:AWM",
        config="polyalign.objectives.online_denoising_config:AWMConfig",
        source="Xue et al. 2025, arXiv 2509.25050",
        needs=("rollouts", "predictions"),
        view="prompts",
        unsupported=_REASONS,
    ),
    ObjectiveSpec(
        name="refl",
        summary="ReFL: a differentiable reward of the response predicted at a random late step, by its own gradient",
        target="polyalign.objectives.reward_gradient:RewardGradient",
        config="polyalign.objectives.online_denoising_config:ReFLConfig",
        source="Xu et al. 2023, arXiv 2304.05977, algorithm 1",
        needs=("sample_grad",),
        view="prompts",
        unsupported=_GRADIENT_REASONS,
    ),
    ObjectiveSpec(
        name="draft_k",
        summary="DRaFT-K: a differentiable reward's gradient through the last K steps of the sampler",
        target="polyalign.objectives.reward_gradient:RewardGradient",
        config="polyalign.objectives.online_denoising_config:DRaFTConfig",
        source="Clark et al. 2023, arXiv 2309.17400",
        needs=("sample_grad",),
        view="prompts",
        unsupported=_GRADIENT_REASONS,
    ),
)
