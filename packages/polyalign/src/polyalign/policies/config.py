"""Configuration shared by the policies of a family. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyalign.training.config import Config


class LoraConfig(Config):
    rank: int = Field(16, gt=0)
    alpha: float | None = Field(None, gt=0, description="scale is alpha / rank; none means alpha = rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(("all-linear",), min_length=1, description="suffixes of module names, or all-linear")


class DenoisingConfig(Config):
    """What every denoising policy can set. beta of an objective is documented together with ``reduction``."""

    draws: int = Field(1, gt=0, description="(t, noise) draws per sample and step, averaged outside the loss")
    bank: int | None = Field(None, gt=0, description="fix K keyed draws per sample, so that reference scores can be cached")
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="score = -1/2 * this of the squared error over latent dimensions"
    )
    latents: Literal["mean", "sample"] = Field("mean", description="posterior mean, or a keyed sample of it")
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    prediction: Literal["auto", "epsilon", "v_prediction", "flow"] = "auto"


class TokensConfig(Config):
    max_length: int = Field(1024, gt=0, description="prompt and response together; longer prompts lose their oldest tokens")
    max_response: int = Field(512, gt=0)
    rows: Literal["auto", "plain", "shared", "packed"] = Field(
        "auto",
        description="shared: all responses to one prompt in one row, the prompt computed once; packed: several prompts per row "
        "too; plain: a row per response; auto: shared where the model gives the same scores that way",
    )
    head_chunk: int | None = Field(
        None, gt=0, description="positions that meet the vocabulary at once; none: as many as make 2**25 logits"
    )
