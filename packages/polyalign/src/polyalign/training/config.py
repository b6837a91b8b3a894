"""The schema of a recipe. Light: no torch here. Plugin slots (policy, objective, rewards) are resolved by `polyalign.config`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Config(BaseModel):
    """Base of every configuration class, ours and plugins': frozen, and an unknown key is an error. What was given stays out
    of a ValidationError's text, since it may be a secret in the wrong place; `polyalign.config` says what is safe to say."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """A class that only changes a setting's default keeps what its base says of the setting."""
        silent = [(name, field) for name, field in cls.model_fields.items() if field.description is None]
        for name, field in silent:
            bases = (getattr(base, "model_fields", {}).get(name) for base in cls.__mro__[1:])
            field.description = next((base.description for base in bases if base and base.description), None)
        if any(field.description for _, field in silent):
            cls.model_rebuild(force=True)


class Slot(BaseModel):
    """A place for a plugin's thing: ``name`` picks it, the other keys are read by its own configuration class."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class SourceConfig(Config):
    """One data set of a mixture. ``path``: a folder, a file or ``dataset:NAME``; ``split`` picks a file of the folder."""

    path: str
    split: str = "train"
    weight: float = Field(1.0, gt=0, description="share of this source in the mixture, relative to the others")
    limit: int | None = Field(None, gt=0, description="use only the first so many records")
    allow_outside: bool = Field(False, description="media may lie outside the data set's folder")
    allow_urls: bool = Field(False, description="media may be fetched over http(s), once, with their hash checked")


class SelfSamplesConfig(Config):
    """The policy answers the training prompts itself, and again every so many steps, with the weights of that moment."""

    count: int = Field(11, gt=0, description="answers to each prompt (D2O's K)")
    every: int = Field(100, gt=0, description="steps before it answers again; from answers new at every step it would collapse")
    prefixes: tuple[str, ...] = Field((), description="texts that take turns in front of the prompt, and are not trained on")
    decoding: dict[str, Any] = Field(default_factory=dict, description="how answers are drawn, as the policy's generate takes it")


class DataConfig(Config):
    train: tuple[SourceConfig, ...] = Field(min_length=1)
    eval: tuple[SourceConfig, ...] = ()
    view: Literal["pairs", "rankings", "unpaired", "grids", "sft", "self_samples", "controlled", "rated", "prompts", "auto"] = (
        "auto"
    )
    aspect: str | None = Field(None, description="use only feedback about this aspect")
    tags: tuple[str, ...] = Field((), description="use only records that carry all of these tags")
    self_samples: SelfSamplesConfig | None = Field(
        None, description="the policy's own answers, made in the run (view self_samples); none: the records carry them"
    )
    workers: int = Field(0, ge=0, description="loader worker processes")
    prefetch: int = Field(2, ge=1, description="batches each worker prepares ahead")
    max_skipped: float = Field(0.01, ge=0, le=1, description="share of bad records above which the run fails")


class OverlongConfig(Config):
    """Soft punishment of responses that come close to the longest allowed (DAPO, arXiv 2503.14476, eq. 13)."""

    buffer: int = Field(gt=0, description="last decisions before the limit, over which the punishment grows from 0 to its all")
    penalty: float = Field(1.0, gt=0, description="taken off the reward of a response that is cut off at the limit")


class LagConfig(Config):
    """The weights that answer lag behind those that learn, as an average of them that is renewed before every round."""

    growth: float = Field(1e-3, ge=0, description="the share of itself that the average keeps grows by this with every round")
    flat: int = Field(0, ge=0, description="rounds before it grows; until then the latest weights answer")
    most: float = Field(0.5, ge=0, le=1, description="it stays at this share")

    def kept(self, round_number: int) -> float:
        """Return the share that the average keeps before a round, counted from 0."""
        return min(self.most, self.growth * max(0, round_number - self.flat))


class OnlineConfig(Config):
    """The policy answers prompts itself, and rewards judge the answers. ``training.batch_size`` counts prompts per step."""

    rewards: tuple[Slot, ...] = Field(min_length=1, description="judge what is trained on; several are added up")
    weights: tuple[float, ...] = Field((), description="factor on each reward; none: 1 each")
    held_out_rewards: tuple[Slot, ...] = Field((), description="judge and report, but are never trained on")
    samples_per_prompt: int = Field(8, gt=0, description="responses per prompt: the group that advantages compare")
    decoding: dict[str, Any] = Field(
        default_factory=dict, description="how responses are drawn, as the policy's generate takes it"
    )
    minibatches: int = Field(1, gt=0, description="steps that one round of responses is spread over, batch_size prompts each")
    epochs: int = Field(1, gt=0, description="passes over one round of responses")
    resample: int = Field(0, ge=0, description="further prompts tried per place whose responses all earn the same (DAPO)")
    pairs: Literal["best_worst", "all"] = Field(
        "best_worst", description="which responses of a group are compared as preferences"
    )
    overlong: OverlongConfig | None = None
    lag: LagConfig | None = Field(None, description="an average of past weights answers (DiffusionNFT); none: the latest do")
    demonstrations: tuple[SourceConfig, ...] = Field((), description="data whose responses every step imitates too (sft view)")
    demonstrations_per_step: int = Field(8, gt=0)

    @property
    def steps_per_round(self) -> int:
        return self.minibatches * self.epochs

    @model_validator(mode="after")
    def _a_weight_each(self) -> OnlineConfig:
        if self.weights and len(self.weights) != len(self.rewards):
            raise ValueError(f"{len(self.weights)} weights for {len(self.rewards)} rewards; give one each, or none")
        return self


class ReferenceConfig(Config):
    """``auto``: adapters off for LoRA, else a frozen copy. ``cache``: score once with the starting weights, keep on disk."""

    kind: Literal["auto", "adapters_off", "frozen_copy", "none"] = "auto"
    cache: bool = Field(False, description="keep reference scores on disk; for denoising this wants a bank of draws")
    run: str | None = Field(None, description="run folder whose trained weights it has; none: the weights this run starts from")

    @model_validator(mode="after")
    def _a_run_is_copied(self) -> ReferenceConfig:
        if self.run is not None and self.kind not in ("auto", "frozen_copy"):
            raise ValueError(f"the weights of another run need a copy of the policy: leave kind {self.kind!r} out, or drop run")
        return self


class OptimizerConfig(Config):
    name: Literal["adamw", "adamw_8bit"] = "adamw"
    learning_rate: float = Field(1e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float | None = Field(1.0, gt=0)


class CheckpointConfig(Config):
    every: int | None = Field(None, gt=0, description="steps between checkpoints; none: only the last step")
    keep_last: int = Field(2, ge=1)
    keep_best: bool = True
    best_metric: str = "eval/accuracy"
    best_is: Literal["max", "min"] = "max"


class TrainingConfig(Config):
    """``batch_size`` counts examples per optimiser step over all processes; ``micro_batch_size`` per forward pass, so that
    1 x 8, 8 x 1 and two processes are the same run. ``micro_batch_budget`` instead caps what a forward pass holds: tokens,
    padding included, or pixels."""

    steps: int = Field(100, gt=0)
    batch_size: int = Field(8, gt=0)
    micro_batch_size: int | None = Field(None, gt=0)
    micro_batch_budget: int | None = Field(None, gt=0)
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: float | None = Field(None, gt=0, lt=1)
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fully_shard"] = "none"
    eval_every: int | None = Field(None, gt=0)
    eval_batches: int = Field(8, gt=0)
    log_every: int = Field(1, gt=0)
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field((), description="jsonl is always written")
    checkpoint: CheckpointConfig = CheckpointConfig()


class ReportConfig(Config):
    """What is generated before and after training, and who judges it."""

    prompts: int = Field(16, ge=0, description="held-out prompts generated for the before/after comparison")
    prompts_from: SourceConfig | None = Field(None, description="where those prompts come from; none: data.eval, else data.train")
    samples_per_prompt: int = Field(1, gt=0)
    show: int = Field(16, ge=0, description="responses shown in the report, spread over the prompts")
    seed: int = 1234
    decoding: dict[str, Any] = Field(default_factory=dict)
    rewards: tuple[Slot, ...] = ()
    evaluators: tuple[Slot, ...] = ()


class Recipe(Config):
    """One YAML file = one run."""

    name: str
    summary: str = ""
    policy: Slot
    data: DataConfig
    objective: Slot
    reference: ReferenceConfig = ReferenceConfig()
    references: dict[str, ReferenceConfig] = Field(
        default_factory=dict, description="further references, by the name that the objective reads them under (d2o: helpful)"
    )
    online: OnlineConfig | None = Field(None, description="how the policy makes its own data; for objectives that need rollouts")
    training: TrainingConfig = TrainingConfig()
    report: ReportConfig = ReportConfig()
    licence: str = Field("", description="licence of the resulting weights, for the model card")
    citation: str = ""

    @model_validator(mode="after")
    def _one_budget(self) -> Recipe:
        if self.training.micro_batch_size and self.training.micro_batch_budget:
            raise ValueError("training.micro_batch_size and training.micro_batch_budget exclude each other; keep one")
        return self

    @model_validator(mode="after")
    def _answers_are_new(self) -> Recipe:
        if self.data.self_samples is None:
            return self
        if self.reference.cache or any(reference.cache for reference in self.references.values()):
            raise ValueError("reference.cache does not go with data.self_samples: answers are new in every round; drop it")
        if self.training.sharding == "fully_shard":
            raise ValueError("data.self_samples does not go with training.sharding=fully_shard: no process can answer alone")
        return self

    @model_validator(mode="after")
    def _whole_rounds(self) -> Recipe:
        """A round in progress is not stored, so a run can only be resumed exactly between rounds."""
        if self.online is None:
            return self
        round_, every = self.online.steps_per_round, self.training.checkpoint.every
        if every and every % round_:
            raise ValueError(
                f"training.checkpoint.every={every} is not a multiple of {round_}, the steps of a round (online.minibatches * "
                "online.epochs), and a run resumes exactly only between rounds"
            )
        for name, clashing in (
            ("training.micro_batch_budget", self.training.micro_batch_budget),
            ("training.sharding=fully_shard", self.training.sharding == "fully_shard"),
            ("reference.cache", self.reference.cache),
        ):
            if clashing:
                raise ValueError(f"{name} does not go with online: responses are new at every step, and whole groups; drop it")
        return self
