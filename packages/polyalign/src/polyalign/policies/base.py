"""What every model being aligned looks like to the rest: samples in, a log-probability per decision out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import BoolTensor, LongTensor, Tensor, nn

from polyalign.errors import TrainingError
from polyalign.policies.adapters import adapters_off
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, Message, TextPart

Job = TypeVar("Job")


class Kind(IntEnum):
    """What a decision is. One response may mix kinds, and an objective scales each on its own."""

    TOKEN = 0
    DENOISING = 1
    TRANSITION = 2
    ACTION = 3
    MEDIA = 4  # a token that is a code of a medium, in models that write media as tokens


@dataclass
class Scores:
    """Log-probabilities of the decisions of N samples.

    ``log_probs`` ``[N, D, T]`` float32: sample, draw, decision. D is 1 except for denoising draws.
    ``mask`` ``[N, D, T]`` bool: which of them are real. ``kind`` ``[N, T]`` long: which `Kind` each decision is.
    ``extras``: what ``want`` asked for (entropy, hidden, prompt_hidden, states, values, predictions, token_targets ...).
    """

    log_probs: Tensor
    mask: BoolTensor
    kind: LongTensor
    extras: Mapping[str, Any] = field(default_factory=dict)

    def detach(self) -> Scores:
        extras = {name: value.detach() if isinstance(value, Tensor) else value for name, value in self.extras.items()}
        return replace(self, log_probs=self.log_probs.detach(), extras=extras)

    def scaled(self, kind_scale: Mapping[Kind, float] | None = None) -> Tensor:
        """Return the log-probabilities scaled per kind, ``[N, D, T]``, 0 where there is only padding."""
        values = torch.where(self.mask, self.log_probs, 0.0)
        if kind_scale:
            scale = torch.ones_like(self.kind, dtype=values.dtype)
            for kind, factor in kind_scale.items():
                scale = torch.where(self.kind == int(kind), factor, scale)
            values = values * scale[:, None, :]
        return values

    def reduced(self, reduction: str = "sum", kind_scale: Mapping[Kind, float] | None = None) -> Tensor:
        """Return one number per sample and draw, ``[N, D]``: decisions scaled per kind, then summed or averaged.

        Draws stay apart on purpose: an objective averages them OUTSIDE its link function.
        """
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction is {reduction!r}; expected 'sum' or 'mean'")
        total = self.scaled(kind_scale).sum(-1)
        return total / self.mask.sum(-1).clamp(min=1) if reduction == "mean" else total


@dataclass
class Batch:
    """N samples made ready on the CPU: what the model needs as tensors, and which decisions will be scored.

    ``mask`` ``[N, D, T]`` and ``kind`` ``[N, T]`` are known before the forward pass; a policy copies them into its `Scores`.
    ``cache_keys`` ``[N]`` (optional) name what a stored reference score depends on besides the weights.
    ``memo`` keeps what frozen parts computed for these samples, so that policy and reference compute it once between them;
    it lives as long as the batch on its device.
    """

    samples: tuple[Sample, ...]
    tensors: dict[str, Any]
    mask: BoolTensor
    kind: LongTensor
    cache_keys: tuple[str, ...] | None = None
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device | str) -> Batch:
        tensors, mask, kind = (_moved(value, device) for value in (self.tensors, self.mask, self.kind))
        return replace(self, tensors=tensors, mask=mask, kind=kind, memo={})


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return value


# Decisions, as rollouts keep them: enough to score the same response again under new weights.


@dataclass(frozen=True)
class Tokens:
    ids: Tensor  # [T] long
    turn: int = 0


@dataclass(frozen=True)
class Noised:
    """The response noised to level t by the draw that ``key`` names. Rollouts keep the ``clean`` latents, and the
    ``prediction`` of the weights that drew them, for solver-free objectives."""

    t: float
    key: str
    clean: Tensor | None = None
    prediction: Tensor | None = None


@dataclass(frozen=True)
class Transition:
    """A step of a stochastic sampler: ``x_next`` is a draw from ``N(state * x_t + prediction * p(x_t, t), std^2)``, where p is
    what the network predicts, guided by ``guidance``."""

    x_t: Tensor
    x_next: Tensor
    t: float
    sampler: str
    guidance: float = 1.0
    state: float = 1.0
    prediction: float = 1.0
    std: float = 1.0


@dataclass(frozen=True)
class Actions:
    values: Tensor  # [T, A]


Decision = Tokens | Noised | Transition | Actions


@dataclass(frozen=True)
class Rollout:
    """One generated response with what is needed to score it again.

    ``output`` is the decoded response (PIL image, text, waveform array ...); ``parts`` is set when it is plain text.
    ``modalities`` is set where a policy writes several: what ``output`` is, or, of a response of several parts, what each thing
    in the tuple ``output`` is.
    """

    prompt: tuple[Message, ...]
    output: Any
    decisions: tuple[Decision, ...] = ()
    old_log_probs: Tensor | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[TextPart | MediaPart, ...] = ()
    modalities: tuple[str, ...] = ()


Rollouts = tuple[Rollout, ...]  # prompt-major: all samples of prompt 0, then of prompt 1 ...


class Collator(ABC):
    """The CPU side of a policy, apart from its weights so that loader workers can pickle it.

    ``pads``: rows of one batch are padded to the longest, so that a batch costs rows x longest and not the sum.
    """

    pads: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> Batch: ...

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        """Return a batch that scores the rollouts' own decisions, as they were made. Rows of ``mask`` hold, in order, the
        decisions that ``old_log_probs`` are of."""
        raise TrainingError(f"{type(self).__name__} cannot score rollouts, so its policy cannot be trained online")

    def cost(self, sample: Sample) -> int:
        """Return what the sample costs against a micro-batch budget (tokens, or pixels); 1 if only counts matter."""
        return 1

    def row_costs(self, samples: Sequence[Sample]) -> list[int]:
        """Return what each row costs that these samples take when they are collated together."""
        return [self.cost(sample) for sample in samples]


class Policy(nn.Module, ABC):
    """The model being aligned. Frozen encoders and decoders are held outside the module tree.

    ``forward`` is the ONLY gradient entry point: DDP, FSDP2 and autocast hook it, and nothing else.
    """

    family: ClassVar[str]
    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset({"log_probs"})
    collator: Collator

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Decode, tokenise and dedupe media on the CPU. Runs in loader workers through ``self.collator``."""
        return self.collator(samples)

    @abstractmethod
    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        """Return the `Scores` of the batch, with the extras that ``want`` names."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return ``len(prompts) * samples_per_prompt`` rollouts, prompt-major; the same seed gives the same rollouts."""

    def decoding_at(self, decoding: dict[str, Any], round_number: int) -> dict[str, Any]:
        """Return how a round of an online run, counted from 0, is drawn, given ``online.decoding``. Default: all alike."""
        return decoding

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights (safetensors) that the model's own library loads: a checkpoint folder, or an adapter file."""

    def save_merged(self, folder: Path) -> None:
        """Write the whole model with its adapters added into the weights: a folder that needs no adapter library."""
        raise TrainingError(f"{type(self).__name__} cannot merge adapters; its model folder holds what it saves")

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of everything a reference score depends on besides the sample: base weights and processor."""

    def prepare(self, samples: Sequence[Sample], cache: Path, progress: Any = None) -> None:
        """Fill on-disk caches (latents, embeddings) for these samples before training starts. Default: nothing to do."""

    @property
    def feature_sizes(self) -> dict[str, int]:
        """Return the width of each extra that a head can be put on: "hidden", "prompt_hidden", "states". Default: none."""
        return {}

    def learning_rate_scales(self) -> dict[str, float]:
        """Return factors on the learning rate by parameter name, where a parameter has its own. Default: none has."""
        return {}

    def anneal(self, done: float) -> None:
        """Set what follows a schedule of its own (a temperature, say) for the share ``done`` of training, 0 to 1. Called before
        every step. Default: nothing does."""

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Score as the reference model: adapters switched off. Only for policies tuned by adapters."""
        if self.adapted is None:
            raise TrainingError(
                f"{type(self).__name__} has no adapters to switch off; use reference: frozen_copy, or tune it with lora"
            )
        with adapters_off(self.adapted):
            yield

    def enable_gradient_checkpointing(self) -> None:
        raise TrainingError(f"{type(self).__name__} has no gradient checkpointing; set gradient_checkpointing: false")

    @property
    def adapted(self) -> Any:
        """Return the model that carries the adapters, or None: it has none."""
        return None

    @property
    def has_adapters(self) -> bool:
        return self.adapted is not None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have the module in eval mode inside and in its own mode after: gradient checkpointing and dropout are for training."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def in_batches(
    policy: Policy, jobs: Sequence[Job], batch_size: int, sampled: Callable[[Sequence[Job]], list[Rollout]]
) -> Rollouts:
    """Return what ``sampled`` makes of the jobs, so many at a time, with the policy in eval mode."""
    rollouts: list[Rollout] = []
    with evaluating(policy):
        for start in range(0, len(jobs), batch_size):
            rollouts += sampled(jobs[start : start + batch_size])
    return tuple(rollouts)
