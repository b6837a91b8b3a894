"""Configuration shared by the policies of a family. Light: no torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from polyalign.errors import ConfigError
from polyalign.training.config import Config

Read = TypeVar("Read", bound=Config)


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
    rows_at_once: int | None = Field(
        None, gt=0, description="sampler steps of rollouts per pass through the network; fewer bound the memory, computing again"
    )


class WindowConfig(Config):
    """MixGRPO: only a window of the steps is stochastic, and only they are decisions."""

    size: int = Field(4, gt=0, description="stochastic steps")
    start: int | None = Field(None, ge=0, description="the first of them; none: drawn anew for every round, or 0 where it moves")
    every: int | None = Field(
        None, gt=0, description="rounds after which it moves on by one step, and from the last place back to the first"
    )

    def at(self, round_number: int) -> WindowConfig:
        """Return the window of a round, counted from 0."""
        if self.every is None:
            return self
        return self.model_copy(update={"start": (self.start or 0) + round_number // self.every})


class SamplerConfig(Config):
    """How a denoising model draws responses whose steps can be scored again; see `polyalign.policies.samplers`."""

    kind: Literal["ode", "ddim", "cps", "sde", "dance"] = Field(
        "ode", description="ode: no decisions; ddim (epsilon and v), sde and dance (flow) and cps (any) add noise in every step"
    )
    steps: int = Field(10, gt=0)
    noise_level: float | None = Field(
        None,
        ge=0,
        description="eta of ddim and cps, a of sde and dance; none: the papers' 1.0, 0.7, 0.7 and 0.3; ode has none",
    )
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance, part of the scored mean; 1 or less: none")
    window: WindowConfig | None = None
    same_start: bool = Field(False, description="responses to one prompt start from the same noise (DanceGRPO)")
    batch_size: int = Field(32, gt=0, description="responses drawn at once")

    @property
    def noise(self) -> float:
        """The amount of noise that ``kind`` adds."""
        usual = {"ode": 0.0, "ddim": 1.0, "cps": 0.7, "sde": 0.7, "dance": 0.3}[self.kind]
        return usual if self.noise_level is None or self.kind == "ode" else self.noise_level

    @model_validator(mode="after")
    def _has_a_density(self) -> SamplerConfig:
        if self.kind == "cps" and self.noise > 1:
            raise ValueError(f"noise_level={self.noise} of cps must lie in [0, 1]")
        return self


class TokensConfig(Config):
    max_length: int = Field(1024, gt=0, description="prompt and response together; longer prompts lose their oldest tokens")
    max_response: int = Field(512, gt=0)
    rows: Literal["auto", "plain", "shared", "packed"] = Field(
        "auto",
        description="shared: all responses to one prompt in one row, the prompt computed once; packed: several prompts per row "
        "too; plain: a row per response; auto: shared where the model gives the same scores that way and it costs less",
    )
    head_chunk: int | None = Field(
        None, gt=0, description="positions that meet the vocabulary at once; none: as many as make 2**25 logits"
    )


class PretrainedConfig(TokensConfig):
    """A model that transformers loads. beta of an objective goes with the sum of log-probabilities over the response.

    ``base``: a hub id, a folder, ``zoo:NAME`` or ``asset:NAME``. A LoRA folder is merged into its own base first, so that a
    run can start where another ended.
    """

    base: str = Field(min_length=1)
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    quantize: Literal["none", "nf4", "int8"] = Field(
        "none", description="keep the frozen weights in 4 or 8 bits under LoRA (QLoRA, arXiv 2305.14314); needs bitsandbytes"
    )
    attention: Literal["auto", "sdpa", "eager", "flex_attention", "flash_attention_2"] = "auto"
    chat_template: Literal["auto", "none"] = Field("auto", description="none: prompt + response + end-of-text, for base models")
    lora: LoraConfig | None = None
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainedConfig:
        if self.max_response >= self.max_length:
            raise ValueError(
                f"max_response={self.max_response} leaves no room for the prompt within max_length={self.max_length}; "
                "lower max_response or raise max_length"
            )
        if self.quantize != "none" and self.lora is None:
            raise ValueError(f"quantize is {self.quantize!r}, but quantized weights do not train; add lora, or set it to none")
        return self


class MediaTokensConfig(PretrainedConfig):
    """What token policies that read media can set. By default the tower stays frozen and, with LoRA, so does the projector."""

    tower: Literal["frozen", "full"] = Field("frozen", description="the encoder of the media")
    projector: Literal["auto", "frozen", "full"] = Field("auto", description="auto: frozen with LoRA, else full")
    language: Literal["auto", "frozen", "norms", "lora", "full"] = Field(
        "auto",
        description="auto: lora where policy.lora is set, else full; norms: its normalisation layers only (arXiv 2312.11420)",
    )
    learning_rate_scale: dict[Literal["tower", "projector", "language"], Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="factor on the optimizer's learning rate for one part; parts not named keep 1"
    )
    cache_features: bool = Field(False, description="keep the features of frozen towers and projectors on disk")


def decoding_of(reader: type[Read], options: dict[str, Any]) -> Read:
    """Read decoding options. Raises `ConfigError` naming each that is wrong."""
    try:
        return reader(**options)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"decoding options: {problems}. Known: {', '.join(reader.model_fields)}") from error


def decoding_of_round(reader: type[Config], decoding: dict[str, Any], round_number: int) -> dict[str, Any]:
    """Return decoding options with the window of their ``sampler`` where a round of an online run, counted from 0, has it.
    ``reader``: as in `decoding_of`, with a field ``sampler``."""
    sampler: SamplerConfig | None = decoding_of(reader, decoding).sampler  # type: ignore[attr-defined]
    if sampler is None or sampler.window is None:
        return decoding
    return {**decoding, "sampler": sampler.model_copy(update={"window": sampler.window.at(round_number)})}
