"""Objectives that were made for denoising models, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec

_ERRORS = {
    "mapo": "its scores are a function of denoising errors; orpo and simpo are its like for likelihoods",
    "dspo": "it compares predictions of noise or velocity, which only denoising models make; use dpo",
    "crpo": "its beta and its anchor are those of denoising errors; weighted_sum of dpo and sft is the same for likelihoods",
}


def _denoising_only(name: str) -> dict[str, str]:
    return {"tokens": _ERRORS[name], "continuous": _ERRORS[name]}


OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    ObjectiveSpec(
        name="mapo",
        summary="Margin-aware Preference Optimization of denoisers: no reference model, and the better response's own error",
        target="polyalign.objectives.denoising:MaPO",
        config="polyalign.objectives.denoising_config:MaPOConfig",
        source="Hong et al. 2024, arXiv 2406.06424",
        needs=("edges",),
        unsupported=_denoising_only("mapo"),
    ),
    ObjectiveSpec(
        name="dspo",
        summary="Direct Score Preference Optimization: score matching on better responses, their target moved by DPO's gate",
        target="polyalign.objectives.denoising:DSPO",
        config="polyalign.objectives.denoising_config:DSPOConfig",
        source="Zhu et al., ICLR 2025; the gate is that of Diffusion-DPO, arXiv 2311.12908",
        needs=("reference", "edges", "predictions"),
        unsupported=_denoising_only("dspo"),
    ),
    ObjectiveSpec(
        name="tdpo",
        summary="DPO over prompts: one response under the prompt that fits it and under one that does not (columns of grids)",
        target="polyalign.objectives.denoising:TDPO",
        config="polyalign.objectives.denoising_config:TDPOConfig",
        source="TDPO of Text Preference Optimization 2025, arXiv 2509.25771",
        needs=("reference", "edges"),
        view="grids",
    ),
    ObjectiveSpec(
        name="crpo",
        summary="CRPO of TangoFlux: Flow-DPO and the better response's own flow-matching error as an anchor",
        target="polyalign.objectives.weighted_sum:WeightedSum",
        config="polyalign.objectives.denoising_config:CRPOConfig",
        source="Hung et al. 2024, TangoFlux, arXiv 2412.21037",
        needs=("reference", "edges"),
        unsupported=_denoising_only("crpo"),
    ),
    ObjectiveSpec(
        name="rwr",
        summary="Reward-weighted regression: imitate every rated response, the better rated the more; Flow-RWR, LiFT",
        target="polyalign.objectives.reward_weighted:RWR",
        config="polyalign.objectives.denoising_config:RWRConfig",
        source="Peters & Schaal 2007; Flow-RWR: arXiv 2501.13918; LiFT: arXiv 2412.04814",
        needs=("ratings",),
        view="rated",
    ),
    ObjectiveSpec(
        name="diffusion_kto",
        summary="Diffusion-KTO: good and bad responses one by one, under a utility: kahneman_tversky, loss_averse, risk_seeking",
        target="polyalign.objectives.kto:KTO",
        config="polyalign.objectives.denoising_config:DiffusionKTOConfig",
        source="Li et al. 2024, arXiv 2404.04465, eq. 8",
        needs=("reference", "labels"),
        scope="batch",
        view="unpaired",
    ),
)
