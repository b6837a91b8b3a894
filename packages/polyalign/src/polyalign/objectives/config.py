"""Configuration of every built-in objective. Light: no torch here.

``beta`` belongs to a reduction. Over tokens a sample's score is the SUM of its log-probabilities, and beta is about 0.1.
A denoising draw scores ``-1/2 * mean squared error``, and the beta of Diffusion-DPO and Flow-DPO (2000 to 5000) fits as
it is. With ``reduction: mean`` beta is about as many times larger as a response has decisions.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from polyalign.training.config import Config

KindName = Literal["token", "denoising", "transition", "action"]
Reduction = Literal["sum", "mean"]
Positive = Annotated[float, Field(gt=0)]


class ObjectiveConfig(Config):
    """What every objective can set."""

    kind_scale: dict[KindName, Positive] = Field(
        default_factory=dict,
        description="factor on the log-probabilities of one decision kind, so that tokens and denoising errors in one "
        "response each get their own beta: beta * factor; kinds not named keep 1",
    )


class SFTConfig(ObjectiveConfig):
    """Supervised fine-tuning has nothing else to set."""


class DPOConfig(ObjectiveConfig):
    """The DPO family: one margin, four links. See `polyalign.objectives.pairwise.DPO` for the formulas."""

    loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    beta: float = Field(default=0.1, gt=0, description="about 0.1 for summed tokens, 2000 to 5000 for mean denoising errors")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="assumed share of flipped preferences; sigmoid: cDPO")
    reduction: Literal["auto", "sum", "mean"] = Field(default="auto", description="over decisions; auto: mean for ipo, else sum")

    @model_validator(mode="after")
    def _smoothing_fits(self) -> DPOConfig:
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, but loss {self.loss!r} has no smoothing; "
                "set it to 0 or use loss sigmoid (cDPO) or robust"
            )
        return self

    @property
    def reduces_by(self) -> Reduction:
        """The reduction in force once ``auto`` is resolved."""
        if self.reduction == "auto":
            return "mean" if self.loss == "ipo" else "sum"
        return self.reduction


class IPOConfig(DPOConfig):
    loss: Literal["ipo"] = "ipo"


class HingeConfig(DPOConfig):
    loss: Literal["hinge"] = "hinge"


class RobustConfig(DPOConfig):
    loss: Literal["robust"] = "robust"
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5, description="share of preferences assumed to be flipped")


class SimPOConfig(ObjectiveConfig):
    beta: float = Field(default=2.0, gt=0, description="scales the difference of mean log-probabilities")
    gamma: float = Field(default=1.0, ge=0, description="target margin, in units of the scaled difference (after beta)")


class ORPOConfig(ObjectiveConfig):
    odds_weight: float = Field(default=0.1, ge=0, description="lambda of the paper, called beta in TRL")


class KTOConfig(ObjectiveConfig):
    beta: float = Field(default=0.1, gt=0, description="about 0.1 for summed tokens, 1000 to 5000 for mean denoising errors")
    desirable_weight: float = Field(default=1.0, gt=0)
    undesirable_weight: float = Field(default=1.0, gt=0)
    kl: Literal["auto", "mismatch", "batch"] = Field(
        default="auto",
        description="reference point z0: mean log-ratio of mismatched samples (KTO), or of the labelled samples themselves "
        "(Diffusion-KTO); auto takes mismatched samples where the step holds any",
    )


class InstructEngineConfig(ObjectiveConfig):
    beta: float = Field(default=2000.0, gt=0, description="2000 to 5000 for mean denoising errors; about 0.1 for summed tokens")
    column_weight: float = Field(default=0.0, ge=0, description="weight of the terms that compare two prompts for one response")
    terms: Literal["sum", "mean"] = Field(default="sum", description="how the rows of one grid are put together")
