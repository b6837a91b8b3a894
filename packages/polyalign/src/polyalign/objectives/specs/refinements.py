"""DPO refined: weighted pairs, weighted decisions, preferences in time; declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

_NO_PROBABILITY = "pairs are weighted by probabilities, and exp(score) of {} is none; use dpo, or mm_dpo where there are ratings"
_NO_TIME = "a denoising draw is one decision for the whole response, so no stretch of time can be told from another; use dpo"

OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="wpo",
        summary="Weighted Preference Optimization: DPO with pairs weighted by how likely the policy is to write them",
        target="polyalign.objectives.refinements:WPO",
        config="polyalign.objectives.refinements_config:WPOConfig",
        source="Zhou et al. 2024, arXiv 2406.11827, eq. 2",
        needs=("reference", "edges", "log_sum_squares"),
        unsupported={
            "denoising": _NO_PROBABILITY.format("a denoising error"),
            "continuous": _NO_PROBABILITY.format("a density"),
        },
    ),
    ObjectiveSpec(
        name="ld_dpo",
        summary="Length-desensitized DPO: what one response says beyond the other's length counts ld_alpha times",
        target="polyalign.objectives.refinements:LDDPO",
        config="polyalign.objectives.refinements_config:LDDPOConfig",
        source="Liu et al. 2024, arXiv 2409.06411",
        needs=("reference", "edges"),
    ),
    ObjectiveSpec(
        name="mm_dpo",
        summary="MM-DPO: beta grows with the difference of the pair's ratings, or with its strength",
        target="polyalign.objectives.refinements:MMDPO",
        config="polyalign.objectives.refinements_config:MMDPOConfig",
        source="Zhang et al. 2025, MM-RLHF, arXiv 2502.10391",
        needs=("reference", "edges", "ratings"),
    ),
    ObjectiveSpec(
        name="dense_dpo",
        summary="DenseDPO: one preference per labelled stretch of time, for responses that share their timing",
        target="polyalign.objectives.dense:DenseDPO",
        config="polyalign.objectives.refinements_config:DenseDPOConfig",
        source="Wu et al. 2025, arXiv 2506.03517",
        needs=("reference", "edges", "segments"),
        unsupported={"denoising": _NO_TIME},
        unless="decisions_in_time",
    ),
    ObjectiveSpec(
        name="segment_dpo",
        summary="RLHF-V's dense DPO: decisions inside labelled segments count several times, lengths divided out",
        target="polyalign.objectives.dense:SegmentDPO",
        config="polyalign.objectives.refinements_config:SegmentDPOConfig",
        source="Yu et al. 2023, RLHF-V, arXiv 2312.00849",
        needs=("reference", "edges", "segments"),
        unsupported={"denoising": _NO_TIME},
        unless="decisions_in_time",
    ),
)
