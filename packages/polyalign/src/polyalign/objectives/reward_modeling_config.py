"""Configuration of reward models. Light: no torch here."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from polyalign.training.config import Config

Positive = Annotated[float, Field(gt=0)]


class RewardModelConfig(Config):
    """What every reward model can set. The policy's own options say whether it trains in full, by LoRA or in part."""

    freeze_policy: bool = Field(default=False, description="train the head alone, on features that stay as they are")
    learning_rate_scale: float = Field(default=1.0, gt=0, description="factor on optimizer.learning_rate for the head")


class HeadConfig(RewardModelConfig):
    hidden_layers: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="widths of layers (GELU) between the features and the score; none: a linear head"
    )


class BradleyTerryConfig(HeadConfig):
    centring: float = Field(
        default=0.0, ge=0, description="weight of (r_better + r_worse)^2; center_rewards_coefficient in TRL, which suggests 0.01"
    )
    ties: Literal["none", "rao_kupper", "davidson"] = Field(
        default="none", description="model of ties in rankings; none leaves them out. VideoReward's BTT is rao_kupper at 5"
    )
    tie: float = Field(default=5.0, gt=0, description="theta > 1 of Rao-Kupper, or nu > 0 of Davidson: larger, more ties")

    @model_validator(mode="after")
    def _theta_is_above_one(self) -> BradleyTerryConfig:
        if self.ties == "rao_kupper" and self.tie <= 1:
            raise ValueError(f"tie is {self.tie:g}, but theta of Rao-Kupper is above 1, where there are no ties; try 5")
        return self


class AspectsConfig(HeadConfig):
    aspects: tuple[str, ...] = Field(default=(), description="aspects to learn; none: every aspect of the training data")
    aspect_weights: dict[str, Positive] = Field(
        default_factory=dict, description="weight of an aspect, in the loss and in the total reward; aspects not named have 1"
    )


class PointwiseConfig(AspectsConfig):
    loss: Literal["mse", "bce"] = Field(
        default="mse", description="mse: the reward is the rating, on [0, 1]; bce: its logit, and ratings are probabilities"
    )


class PickScoreObjectiveConfig(HeadConfig):
    similarity: Literal["head", "cosine"] = Field(
        default="head",
        description="head: a head on the features of prompt and response; cosine: exp(scale) * cosine of a projection of the "
        "prompt's features and one of the response's, which start as identities",
    )


class HPSv3Config(HeadConfig):
    """The head gives a mean and the logarithm of a standard deviation."""


class PALConfig(RewardModelConfig):
    prototypes: int = Field(default=2, gt=0, description="K: how many ideal points (or maps) annotators are mixtures of")
    dimension: int | None = Field(default=None, gt=0, description="of the preference space; none: that of the features")
    hidden_layers: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), description="widths of layers (GELU) in the maps from features to the preference space; none: linear maps"
    )
    loss: Literal["logistic", "hinge"] = Field(default="logistic", description="of the difference of two rewards")
    temperature: float = Field(default=1.0, gt=0, description="of the softmax that makes an annotator's weights")
    mixture_learning_rate_scale: float = Field(
        default=10.0, gt=0, description="factor on optimizer.learning_rate for prototypes and annotators' weights"
    )


class PALAConfig(PALConfig):
    ideal: Literal["map_of_mixture", "mixture_of_maps", "mixture"] = Field(
        default="map_of_mixture",
        description="an annotator's ideal point: f(w P), w f(P), or w P with prototypes in the preference space",
    )


class PALBConfig(PALConfig):
    pass


class ProcessRewardConfig(HeadConfig):
    aggregate: Literal["min", "product", "last", "mean"] = Field(
        default="min", description="how the probabilities of a response's steps make one reward"
    )


class SalmonConfig(BradleyTerryConfig):
    """As Bradley-Terry; the records carry their principles."""

    records: ClassVar[str] = "polyalign.records.principles"
