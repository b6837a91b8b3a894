"""Settings that every diffusers pipeline has. Light: no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from polyalign.policies.config import DenoisingConfig, LoraConfig, SamplerConfig
from polyalign.training.config import Config


class AttentionLoraConfig(LoraConfig):
    """LoRA on the attention projections; names that a network does not have (``add_*`` in a UNet) match nothing."""

    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        min_length=1,
        description="suffixes of module names",
    )


class PipelineConfig(DenoisingConfig):
    """A diffusers pipeline to align. What kind it is, is read from its ``model_index.json``."""

    base: str = Field(description="folder or hub id of a diffusers pipeline, zoo:NAME or asset:NAME")
    lora: AttentionLoraConfig | None = Field(None, description="train LoRA layers only; none: train the whole denoiser")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of denoiser and text encoders; the VAE stays float32")
    max_sequence_length: int | None = Field(
        None, ge=0, description="tokens of the long text encoder (T5), where there is one; none: the pipeline's default"
    )
    encode_batch: int = Field(16, gt=0, description="media or captions per pass through the frozen encoders")


class DecodingConfig(Config):
    """How media are drawn: by the pipeline's own sampler, or step by step by ``sampler``, which then has its own settings."""

    sampler: SamplerConfig | None = Field(None, description="draw rollouts to train on; the other keys are not for it")

    num_inference_steps: int = Field(28, gt=0)
    guidance_scale: float = Field(5.0, ge=0, description="1 or less: no guidance")
    negative_prompt: str | None = Field(None, description="none: the pipeline's own empty prompt")
    batch_size: int = Field(16, gt=0, description="responses per pass; does not change which noise a response starts from")

    @model_validator(mode="after")
    def _one_sampler(self) -> DecodingConfig:
        if self.sampler is not None and (others := self.model_fields_set - {"sampler"}):
            raise ValueError(f"sampler draws by its own keys and does not read {', '.join(sorted(others))}; move or drop them")
        return self
