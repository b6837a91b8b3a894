"""The built-in objectives, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

_PAIRWISE = ("reference", "edges")

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="sft",
        summary="Supervised fine-tuning: mean negative log-probability per decision of the shown responses",
        target="polyalign.objectives.supervised:SFT",
        config="polyalign.objectives.config:SFTConfig",
        source="maximum likelihood; Ouyang et al. 2022, arXiv 2203.02155, section 3.5",
        view="sft",
    ),
    ObjectiveSpec(
        name="dpo",
        summary="Direct Preference Optimization; label_smoothing makes it cDPO; Diffusion-DPO and Flow-DPO on denoisers",
        target="polyalign.objectives.pairwise:DPO",
        config="polyalign.objectives.config:DPOConfig",
        source="Rafailov et al. 2023, arXiv 2305.18290, eq. 7; Wallace et al. 2023, arXiv 2311.12908",
        needs=_PAIRWISE,
    ),
    ObjectiveSpec(
        name="ipo",
        summary="Identity Preference Optimization: squared distance of the margin to a target, length-normalised",
        target="polyalign.objectives.pairwise:DPO",
        config="polyalign.objectives.config:IPOConfig",
        source="Azar et al. 2023, arXiv 2310.12036, eq. 17",
        needs=_PAIRWISE,
    ),
    ObjectiveSpec(
        name="hinge",
        summary="Hinge loss on the DPO margin (SLiC)",
        target="polyalign.objectives.pairwise:DPO",
        config="polyalign.objectives.config:HingeConfig",
        source="Zhao et al. 2023, arXiv 2305.10425; on the DPO margin: Liu et al. 2023, arXiv 2309.06657",
        needs=_PAIRWISE,
    ),
    ObjectiveSpec(
        name="robust",
        summary="Robust DPO: unbiased when a known share of preferences is flipped",
        target="polyalign.objectives.pairwise:DPO",
        config="polyalign.objectives.config:RobustConfig",
        source="Chowdhury et al. 2024, arXiv 2403.00409",
        needs=_PAIRWISE,
    ),
    ObjectiveSpec(
        name="kto",
        summary="Kahneman-Tversky Optimization: good and bad responses one by one, no pairs needed",
        target="polyalign.objectives.kto:KTO",
        config="polyalign.objectives.config:KTOConfig",
        source="Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7; Li et al. 2024, arXiv 2404.04465",
        needs=("reference", "labels"),
        scope="batch",
        view="unpaired",
    ),
    ObjectiveSpec(
        name="simpo",
        summary="Simple Preference Optimization: mean log-probabilities against a target margin, no reference model",
        target="polyalign.objectives.pairwise:SimPO",
        config="polyalign.objectives.config:SimPOConfig",
        source="Meng et al. 2024, arXiv 2405.14734, eq. 6",
        needs=("edges",),
    ),
    ObjectiveSpec(
        name="orpo",
        summary="Odds Ratio Preference Optimization: fine-tuning plus an odds-ratio penalty, no reference model",
        target="polyalign.objectives.odds_ratio:ORPO",
        config="polyalign.objectives.config:ORPOConfig",
        source="Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7",
        needs=("edges",),
        unsupported={"continuous": "a density of continuous actions can exceed 1 and then has no odds; use simpo or dpo"},
    ),
    ObjectiveSpec(
        name="instruct_engine",
        summary="InstructEngine: two instructions x two responses, each response better under its own instruction",
        target="polyalign.objectives.instruct_engine:InstructEngine",
        config="polyalign.objectives.config:InstructEngineConfig",
        source="InstructEngine 2025, arXiv 2504.10329, eq. 8",
        needs=("reference", "edges", "grid"),
        scope="group",
        view="grids",
    ),
)
