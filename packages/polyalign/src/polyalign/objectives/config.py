"""Configuration of every built-in objective. Light: no torch here.

``beta`` belongs to a reduction. Over tokens a sample's score is the SUM of its log-probabilities, and beta is about 0.1.
A denoising draw scores ``-1/2 * mean squared error``, and the beta of Diffusion-DPO and Flow-DPO (2000 to 5000) fits as
it is. With ``reduction: mean`` beta is about as many times larger as a response has decisions.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from polyalign.training.config import Config

KindName = Literal["token", "denoising", "transition", "action", "media"]
Reduction = Literal["sum", "mean"]
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
Positive = Annotated[float, Field(gt=0)]


class ObjectiveConfig(Config):
    """What every objective can set."""

    kind_scale: dict[KindName, Positive] = Field(
        default_factory=dict,
        description="factor on the log-probabilities of one decision kind, so that tokens and denoising errors in one "
        "response each get their own beta: beta * factor; kinds not named keep 1",
    )

    @property
    def needs(self) -> frozenset[str]:
        """What these options need of the data, besides what the objective always does."""
        return frozenset()


class SFTConfig(ObjectiveConfig):
    """Supervised fine-tuning has nothing else to set."""


class EdgeConfig(ObjectiveConfig):
    """What every objective over preferences can make of the feedback beside them; `polyalign.objectives.ratings` says how.

    Ratings are taken on [0, 1]. A preference whose two sides are not both rated keeps its margin and weight; where ratings
    contradict a preference, they count as equal.
    """

    margin_from: Literal["record", "ratings", "strength"] = Field(
        default="record",
        description="where margins come from: the data as it is (0 in records), the difference of two ratings, or the strength "
        "of the comparison, which then is no weight",
    )
    margin_scale: float = Field(
        default=1.0, gt=0, description="scaled margin asked for per unit of rating or strength, after beta"
    )
    weight_from: Literal["record", "ratings"] = Field(
        default="record", description="ratings: a preference's weight is multiplied by the difference of its ratings"
    )
    aspect_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="factor on preferences about an aspect, and on its ratings; aspects not named keep 1"
    )

    @property
    def needs(self) -> frozenset[str]:
        """What these options need of the data, besides preferences."""
        return frozenset({"ratings"} if "ratings" in (self.margin_from, self.weight_from) else ())

    @model_validator(mode="after")
    def _strength_once(self) -> EdgeConfig:
        if self.margin_from == "strength" and self.weight_from == "ratings":
            raise ValueError("margin_from: strength takes the weights away that weight_from: ratings would multiply; drop one")
        return self


class PairwiseConfig(EdgeConfig):
    """A preference between two responses, against a reference. ``link`` names the formula in `polyalign.objectives.links`."""

    link: ClassVar[str]
    beta: float = Field(default=0.1, gt=0, description="about 0.1 for summed tokens, 2000 to 5000 for mean denoising errors")
    reduction: Reduction = Field(default="sum", description="over decisions; with mean, beta is larger by their number")


class MarginConfig(PairwiseConfig):
    """A link that sees only the difference of two rewards: there the reward of another divergence makes sense too (f-DPO)."""

    divergence: Divergence = Field(
        default="reverse_kl", description="penalty between policy and reference that the reward stems from; reverse_kl is DPO's"
    )
    alpha: float = Field(
        default=0.5, gt=0, lt=1, description="of the alpha divergence: near 0 reverse KL, near 1 forward KL; TRL's is 1 - alpha"
    )


class DPOConfig(MarginConfig):
    link: ClassVar[str] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="assumed share of flipped preferences: cDPO")


class SigmoidNormConfig(DPOConfig):
    beta: float = Field(default=2.0, gt=0, description="about 1 to 5 for tokens: larger than DPO's by a response's length")
    reduction: Literal["mean"] = Field(default="mean", description="over decisions: each response counts by its length")


class FDPOConfig(DPOConfig):
    divergence: Divergence = Field(
        default="js", description="penalty between policy and reference; forward_kl wants a beta near 1e-5, alpha near 0.01"
    )


class IPOConfig(MarginConfig):
    link: ClassVar[str] = "ipo"
    reduction: Reduction = Field(default="mean", description="over decisions; sum is the paper's letter")


class HingeConfig(MarginConfig):
    link: ClassVar[str] = "hinge"


class RobustConfig(MarginConfig):
    link: ClassVar[str] = "robust"
    label_smoothing: float = Field(default=0.1, ge=0, lt=0.5, description="share of preferences assumed to be flipped")


class EXOPairConfig(MarginConfig):
    link: ClassVar[str] = "exo_pair"
    label_smoothing: float = Field(default=1e-3, gt=0, lt=0.5, description="share of flipped preferences; 0 has infinite loss")


class DiscoPOPConfig(MarginConfig):
    link: ClassVar[str] = "discopop"
    tau: float = Field(
        default=0.05, gt=0, lt=1, description="width of the step between its two losses; below 0.102 the loss rises from z = 0"
    )


class NCAPairConfig(PairwiseConfig):
    link: ClassVar[str] = "nca_pair"


class SPPOHardConfig(PairwiseConfig):
    link: ClassVar[str] = "sppo_hard"


class APOZeroConfig(PairwiseConfig):
    link: ClassVar[str] = "apo_zero"


class APODownConfig(PairwiseConfig):
    link: ClassVar[str] = "apo_down"


class BCOPairConfig(PairwiseConfig):
    link: ClassVar[str] = "bco_pair"
    baseline: Literal["running", "none"] = Field(
        default="running", description="reward that counts as neither good nor bad: mean over all steps so far, or 0 (TRL 1.16)"
    )


class AOTConfig(EdgeConfig):
    paired: ClassVar[bool] = True
    beta: float = Field(default=0.1, gt=0, description="about 0.1 for summed tokens, 2000 to 5000 for mean denoising errors")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="assumed share of flipped preferences")


class AOTUnpairedConfig(AOTConfig):
    paired: ClassVar[bool] = False


class SimPOConfig(EdgeConfig):
    beta: float = Field(default=2.0, gt=0, description="scales the difference of mean log-probabilities")
    gamma: float = Field(default=1.0, ge=0, description="target margin, in units of the scaled difference (after beta)")


class AlphaPOConfig(SimPOConfig):
    beta: float = Field(default=2.5, gt=0, description="scales the difference of rewards")
    gamma: float = Field(default=0.1, ge=0, description="target margin, in units of the scaled difference (after beta)")
    alpha: float = Field(default=0.25, description="shape of the reward (1 - p^-alpha) / alpha; 0 is SimPO, may be negative")


class CPOConfig(EdgeConfig):
    beta: float = Field(default=0.1, gt=0, description="scales the difference of summed log-probabilities")
    nll_weight: float = Field(default=1.0, ge=0, description="weight of the better responses' likelihood, cpo_alpha in TRL")


class CPLConfig(EdgeConfig):
    alpha: float = Field(default=0.1, gt=0, description="advantage per unit of summed log-probability, the paper's temperature")
    bias: float = Field(default=0.5, gt=0, le=1, description="factor on the worse side; below 1 the policy stays near the data")
    discount: float = Field(default=1.0, gt=0, le=1, description="what the next decision counts, relative to this one")


class CPLKLConfig(CPLConfig):
    """The same against a reference."""


class ORPOConfig(EdgeConfig):
    odds_weight: float = Field(default=0.1, ge=0, description="lambda of the paper, called beta in TRL")


class KTOConfig(ObjectiveConfig):
    beta: float = Field(default=0.1, gt=0, description="about 0.1 for summed tokens, 1000 to 5000 for mean denoising errors")
    desirable_weight: float = Field(default=1.0, gt=0)
    undesirable_weight: float = Field(default=1.0, gt=0)
    utility: Literal["kahneman_tversky", "loss_averse", "risk_seeking"] = Field(
        default="kahneman_tversky",
        description="what a gain x is worth: sigma(x), which saturates both ways; log sigma(x), which punishes losses without "
        "end; -log sigma(-x), which pays for gains without end",
    )
    kl: Literal["auto", "mismatch", "batch"] = Field(
        default="auto",
        description="reference point z0: mean log-ratio of mismatched samples (KTO), or of the labelled samples themselves "
        "(Diffusion-KTO); auto takes mismatched samples where the step holds any",
    )


class InstructEngineConfig(EdgeConfig):
    beta: float = Field(default=2000.0, gt=0, description="2000 to 5000 for mean denoising errors; about 0.1 for summed tokens")
    column_weight: float = Field(default=0.0, ge=0, description="weight of the terms that compare two prompts for one response")
    terms: Literal["sum", "mean"] = Field(default="sum", description="how the rows of one grid are put together")
