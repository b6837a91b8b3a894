"""Configuration of distillation: the teacher, and what each objective takes from it. Light: no torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from polyalign.slots import PolicySlot
from polyalign.training.config import Config

Rest = Literal["bucket", "renormalised", "dropped"]


class TeacherConfig(Config):
    """Who teaches, and what is kept of what it says. It reads the training data once and is not in memory while training."""

    policy: PolicySlot = Field(description="the teacher, of the student's vocabulary; for dckd and adpa tuned to preferences")
    reference: PolicySlot | None = Field(None, description="the teacher before it was tuned to preferences; adpa needs it")
    top_k: int = Field(128, gt=0, description="how many likely tokens are kept at each position; the rest is one number")
    dtype: Literal["float16", "float32"] = Field("float16", description="how log-probabilities are kept on disk")
    self_samples: int = Field(
        0, ge=0, description="responses per prompt that the starting student samples, taught beside those of the data"
    )
    decoding: dict[str, Any] = Field(default_factory=dict, description="how they are sampled: temperature, top_p, max_new_tokens")
    batch_size: int = Field(16, gt=0, description="responses that the teacher reads at once")
    store: str | None = Field(None, description="folder of the kept distributions; none: in polyalign's cache folder")


class DistillationConfig(Config):
    """What every distillation can set."""

    teacher: TeacherConfig | None = Field(None, description="who teaches; required in a recipe")


class GKDConfig(DistillationConfig):
    beta: float = Field(0.5, ge=0, le=1, description="0: forward KL (covers the teacher), 1: reverse KL (seeks its modes)")
    rest: Literal["bucket", "renormalised"] = Field(
        "bucket", description="tokens outside the top k: one event, or left out on both sides, what is listed summing to 1"
    )


class DCKDConfig(DistillationConfig):
    nll_weight: float = Field(1.0, ge=0, description="factor on the better response's likelihood")
    better_weight: float = Field(1.0, ge=0, description="factor on the divergence from the teacher on the better response")
    worse_weight: float = Field(1.0, ge=0, description="factor on the divergence from the teacher on the worse response")
    rest: Literal["bucket", "renormalised"] = Field(
        "bucket", description="tokens outside the top k: one event, or left out on both sides, what is listed summing to 1"
    )


class ADPAConfig(DistillationConfig):
    nll_weight: float = Field(1.0, ge=0, description="factor on the likelihood of the responses worth imitating")
    advantage_weight: float = Field(1.0, gt=0, description="factor on the expected advantage")
    states: Literal["self_samples", "responses"] = Field(
        "self_samples",
        description="prefixes of what the student sampled (teacher.self_samples), or of the data's good responses",
    )
    floor: float = Field(1e-7, gt=0, lt=1, description="probabilities of both teachers are raised to it, which bounds advantages")
    rest: Rest = Field("bucket", description="tokens outside the top k: one action, or left out; dropped is the authors' sum")
