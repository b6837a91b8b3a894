"""Configuration of objectives that were made for denoising models. Light: no torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from polyalign.objectives.config import DPOConfig, EdgeConfig, KTOConfig, ObjectiveConfig
from polyalign.objectives.terms import WeightedSumConfig, WeightedTerm


class MaPOConfig(EdgeConfig):
    beta: float = Field(default=0.1, gt=0, description="weight of the preference beside the better response's error")
    gamma: float = Field(default=0.5, gt=0, description="how fast a response's score falls with its error; snr_value of the code")
    steps: float = Field(default=1000.0, gt=0, description="T: scales the difference of scores, the schedule's number of times")


class DSPOConfig(EdgeConfig):
    beta: float = Field(
        default=0.01,
        gt=0,
        description="how far the target is moved along the policy's own change; 0.001 to 0.05",
    )
    gate_beta: float | None = Field(
        default=None, gt=0, description="beta inside the gate 1 - sigma(z); none: beta, as printed, which keeps the gate near 1/2"
    )


class TDPOConfig(DPOConfig):
    beta: float = Field(default=2000.0, gt=0, description="2000 to 5000 for mean denoising errors; about 0.1 for summed tokens")


class RWRConfig(ObjectiveConfig):
    weighting: Literal["exponential", "linear", "lift"] = Field(
        default="exponential",
        description="what a rating r on [0, 1] weighs: exp(r / temperature), r, or LiFT's 0.05, 0.2 and 0.9 at 0, 1/2 and 1",
    )
    temperature: float = Field(
        default=0.25, gt=0, description="of exponential: the best rating weighs as much as exp(1 / temperature) worst"
    )
    aspect_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weight of an aspect in a response's mean rating; aspects not named keep 1"
    )


class DiffusionKTOConfig(KTOConfig):
    beta: float = Field(
        default=2000.0, gt=0, description="twice the authors', as scores are half of errors; 0.1 for summed tokens"
    )
    kl: Literal["auto", "mismatch", "batch"] = Field(
        default="batch",
        description="reference point z0: mean log-ratio of the step's labelled samples, or of mismatched ones; auto takes "
        "mismatched samples where the step holds any",
    )


class CRPOConfig(WeightedSumConfig):
    """TangoFlux (Hung et al. 2024, arXiv 2412.21037): ``-log sigma(z) + mean e(better)``, with DPO's z at beta 2000 and e the
    mean squared error of a draw, 2 times sft's loss; sft counts a response once however often it wins."""

    terms: tuple[WeightedTerm, ...] = Field(
        default_factory=lambda: (
            WeightedTerm(name="dpo", weight=1.0, beta=2000.0),
            WeightedTerm(name="sft", weight=2.0),  # sft is half the mean squared error
        ),
        min_length=1,
        description="preference and anchor, each {name, weight, and its own options}; the loss is the weighted sum",
    )
