"""A reward: (prompt, response) to one number. Higher is better, always."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyalign.errors import RewardError
from polyalign.records.samples import MediaSource, Prompt
from polyalign.records.schema import Message, Scalar, text_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Judged:
    """What a reward sees: the prompt, and the decoded response (text, PIL image, waveform ...).

    ``media`` opens the media of the prompt. ``conditions`` are the record's: its reference answer is the condition
    "answer", unless a reward is told another name. ``info`` is what came with the response: what an environment
    reported, or a stored candidate's own conditions. ``group`` names the analogous prompts this one belongs to.
    ``modalities``: what a stored candidate is made of. Items of one call with equal prompts are siblings.
    """

    prompt: tuple[Message, ...]
    output: Any
    media: MediaSource | None = field(default=None, compare=False, repr=False)
    conditions: Mapping[str, Scalar] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    modalities: frozenset[str] = frozenset()

    @classmethod
    def of(cls, prompt: tuple[Message, ...], output: Any, info: Mapping[str, Any] | None = None) -> Judged:
        """Return an item with what a `Prompt` carries: the source of its media, and the record's conditions. Without ``info`` it
        is what the response says of itself, as ``output.reported``, if it does: a trajectory its environment's verdict."""
        info = info if info is not None else getattr(output, "reported", None)
        if not isinstance(prompt, Prompt):
            return cls(prompt, output, info=info or {})
        return cls(prompt, output, prompt.media, prompt.conditions, info or {})


@dataclass(frozen=True)
class Scored:
    """One number per item, and the numbers of the parts it was made of, each under its name."""

    values: list[float]
    aspects: Mapping[str, list[float]] = field(default_factory=dict)


class Reward(ABC):
    """Scores responses in batches. Deterministic: the same items give the same numbers (a running normalisation excepted)."""

    name: str = "reward"

    @abstractmethod
    def score(self, items: Sequence[Judged]) -> list[float]:
        """Return one finite number per item; higher is better."""

    def per_decision(self, items: Sequence[Judged]) -> list[Sequence[float]] | None:
        """Return what each decision of each response earned by itself, adding up to `score`. Default: None, nobody knows, and
        the whole falls due at the last decision. For objectives that look ahead step by step (GAE)."""
        return None

    def on_tensors(self, media: Tensor, prompts: Sequence[tuple[Message, ...]]) -> Tensor:
        """Return one number per response, ``[N]`` float32, with a gradient to ``media``: decoded responses as a denoising policy
        makes them (pictures: ``[N, 3, H, W]`` float32 in [0, 1], RGB). Equal to `score` up to the rounding of media files.
        Default: raises `RewardError`, for rewards that are not differentiable."""
        raise RewardError(f"reward {self.name!r} is not differentiable: it has no on_tensors")

    def evaluate(self, items: Sequence[Judged]) -> Scored:
        """Return the scores with their parts. A reward of several aspects overrides this, and scores by it."""
        return Scored(self.score(items))

    def state(self) -> dict[str, Any]:
        """Return what a resumed run has to give back to `restore`, as JSON data; empty for most rewards."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state`. Raises `RewardError` for the state of another reward."""
        if state:
            raise RewardError(
                f"reward {self.name!r} keeps no state, but was given {', '.join(state)}; is it the run's own reward?"
            )


def checked(name: str, scored: Scored, count: int) -> Scored:
    """Return ``scored`` if it holds ``count`` finite numbers. Raises `RewardError` naming the reward and the item."""
    if len(scored.values) != count:
        raise RewardError(f"reward {name!r} returned {len(scored.values)} numbers for {count} items; expected one each")
    for position, value in enumerate(scored.values):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise RewardError(f"reward {name!r} gave item {position} the value {value!r}; expected a finite number")
    return scored


def text_output(item: Judged, name: str) -> str:
    """Return the response as text. Raises `RewardError` for one of another modality."""
    if not isinstance(item.output, str):
        raise RewardError(f"reward {name!r} judges text, but the response is a {type(item.output).__name__}")
    return item.output


def asked(prompt: Sequence[Message]) -> str:
    """Return the text of the prompt's last user message; empty where there is none."""
    return next((text_of(message.parts) for message in reversed(prompt) if message.role == "user"), "")
