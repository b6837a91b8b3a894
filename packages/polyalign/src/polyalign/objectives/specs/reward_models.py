"""Reward models, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

_HERE = "polyalign.objectives.reward_modeling"
_CONFIG = "polyalign.objectives.reward_modeling_config"

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="bradley_terry",
        summary="Reward model from comparisons: a head on the policy's features, with margins, centring and ties (BTT)",
        target=f"{_HERE}.bradley_terry:BradleyTerry",
        config=f"{_CONFIG}:BradleyTerryConfig",
        source="Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1; ties: Rao and Kupper 1967, Davidson 1970, "
        "arXiv 2501.13918",
        needs=("hidden", "edges"),
        view="rankings",
        reads="features",
    ),
    ObjectiveSpec(
        name="bradley_terry_aspects",
        summary="Reward model with a score per aspect, each from the comparisons about it",
        target=f"{_HERE}.bradley_terry:BradleyTerryAspects",
        config=f"{_CONFIG}:AspectsConfig",
        source="Liu et al. 2025 (VideoReward), arXiv 2501.13918, section 3.2",
        needs=("hidden", "edges"),
        view="rankings",
        reads="features",
    ),
    ObjectiveSpec(
        name="pointwise",
        summary="Reward model from ratings of single responses: regression, or cross-entropy with soft labels",
        target=f"{_HERE}.pointwise:Pointwise",
        config=f"{_CONFIG}:PointwiseConfig",
        source="regression as VideoScore, arXiv 2406.15252; cross-entropy as Cobbe et al. 2021, arXiv 2110.14168",
        needs=("hidden", "ratings"),
        view="rated",
        reads="features",
    ),
    ObjectiveSpec(
        name="pickscore",
        summary="PickScore: softmax over two responses against what people picked, ties half and half; head or CLIP cosine",
        target=f"{_HERE}.bradley_terry:PickScore",
        config=f"{_CONFIG}:PickScoreObjectiveConfig",
        source="Kirstain et al. 2023, arXiv 2305.01569, section 3",
        needs=("hidden", "edges"),
        view="rankings",
        reads="features",
    ),
    ObjectiveSpec(
        name="hpsv3",
        summary="HPSv3: rewards with their uncertainty, a Gaussian per response, and the expected Bradley-Terry loss",
        target=f"{_HERE}.bradley_terry:HPSv3",
        config=f"{_CONFIG}:HPSv3Config",
        source="Ma et al. 2025, arXiv 2508.03789, section 3.2",
        needs=("hidden", "edges"),
        view="rankings",
        reads="features",
    ),
    ObjectiveSpec(
        name="pal_a",
        summary="PAL-A: annotators as mixtures of K prototypes, each with an ideal point; few-shot newcomers",
        target=f"{_HERE}.pal:PALA",
        config=f"{_CONFIG}:PALAConfig",
        source="Chen et al. 2025, arXiv 2406.08469",
        needs=("hidden", "edges"),
        view="rankings",
        reads="features",
    ),
    ObjectiveSpec(
        name="pal_b",
        summary="PAL-B: annotators as mixtures of K maps from the prompt to an ideal response",
        target=f"{_HERE}.pal:PALB",
        config=f"{_CONFIG}:PALBConfig",
        source="Chen et al. 2025, arXiv 2406.08469",
        needs=("hidden", "prompt_hidden", "edges"),
        view="rankings",
        reads="features",
    ),
    ObjectiveSpec(
        name="process_reward",
        summary="Process reward model: a probability per step from labelled segments; minimum, product, last or mean of them",
        target=f"{_HERE}.process:ProcessReward",
        config=f"{_CONFIG}:ProcessRewardConfig",
        source="Lightman et al. 2023, arXiv 2305.20050; Sun et al. 2024, arXiv 2403.09472",
        needs=("states", "segments"),
        view="rated",
        reads="features",
    ),
    ObjectiveSpec(
        name="salmon",
        summary="SALMON: Bradley-Terry on prompts that carry principles, some negated; scores by any principles it is given",
        target=f"{_HERE}.bradley_terry:BradleyTerry",
        config=f"{_CONFIG}:SalmonConfig",
        source="Sun et al. 2023, arXiv 2310.05910",
        needs=("hidden", "edges"),
        view="rankings",
        reads="features",
    ),
)
