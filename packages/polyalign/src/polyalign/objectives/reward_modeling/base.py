"""What every reward model shares: features of the policy in, a head that learns its width when it is attached, rewards out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import LongTensor, Tensor, nn

from polyalign.errors import TrainingError
from polyalign.objectives.base import Edges, FeedbackTensors, Objective, Term
from polyalign.objectives.margins import rows
from polyalign.objectives.reward_modeling_config import RewardModelConfig
from polyalign.policies.base import Policy, Scores
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Example


@dataclass(frozen=True)
class Attachment:
    """What decides the shapes of a head: widths of features by name, annotators and aspects of the training data, sorted.

    An annotator without a name is "". Kept beside a trained head, so that it can be built again without the data.
    """

    sizes: Mapping[str, int]
    annotators: tuple[str, ...] = ("",)
    compared: tuple[str, ...] = ("overall",)  # aspects of comparisons
    rated: tuple[str, ...] = ()  # aspects of ratings

    @classmethod
    def of(cls, policy: Policy, data: Iterable[Example], wanted: Iterable[str]) -> Attachment:
        """Look at the policy's features and at all of the data. Raises `TrainingError` for features without a known width."""
        sizes = policy.feature_sizes
        if missing := sorted(set(wanted) - set(sizes)):
            known = ", ".join(sorted(sizes)) or "none"
            raise TrainingError(f"{type(policy).__name__} does not say how wide its {', '.join(missing)} are; known: {known}")
        annotators, compared, rated = set(), set(), set()
        for example in data:
            annotators |= {edge.annotator or "" for edge in example.edges}
            compared |= {edge.aspect for edge in example.edges}
            rated |= {rating.aspect for rating in example.ratings}
        return cls({name: sizes[name] for name in sorted(wanted)}, *(tuple(sorted(x)) for x in (annotators, compared, rated)))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Attachment:
        return cls(dict(stored["sizes"]), *(tuple(stored[name]) for name in ("annotators", "compared", "rated")))


@dataclass(frozen=True)
class Reader:
    """For whom and about what a reward is asked: an annotator (none: the average one) and an aspect (none: all, weighted)."""

    annotator: str | None = None
    aspect: str | None = None


ANYBODY = Reader()


class RewardModel(Objective):
    """Base of reward models: a head on features that the policy provides.

    Subclasses name the features in ``wants`` (and ``needs``), make their parameters in `build`, and say in `rewards` what one
    sample is worth and in `head_margins` by how much one of two is preferred. Whether the policy itself is trained
    is the policy's matter, unless ``freeze_policy`` is set. A linear head starts at 0: at first all rewards are equal.
    """

    needs = frozenset({"hidden", "edges"})
    wants = frozenset({"hidden"})
    config: RewardModelConfig
    attachment: Attachment | None = None

    def attach(self, policy: Policy, data: Iterable[Example]) -> None:
        """Build the head; with ``freeze_policy`` stop the policy's weights from training."""
        self.load_attachment(Attachment.of(policy, data, self.wants & {"hidden", "prompt_hidden", "states"}))
        if self.config.freeze_policy:
            policy.requires_grad_(False)

    def load_attachment(self, attachment: Attachment) -> None:
        """Build the head for known shapes, at its starting values. Done at most once."""
        assert self.attachment is None, "this reward model is attached already"
        self.attachment = attachment
        self.build(attachment)

    def build(self, attachment: Attachment) -> None:
        """Make the parameters."""
        raise NotImplementedError

    def rewards(self, scores: Scores, reader: Reader = ANYBODY) -> Tensor:
        """Return one reward per sample, ``[N]``; higher is better."""
        raise NotImplementedError

    def parts(self, scores: Scores) -> dict[str, Tensor]:
        """Return numbers that a reward is made of, ``[N]`` each by name; empty for most."""
        return {}

    def head_margins(self, scores: Scores, edges: Edges) -> Tensor:
        """Return reward of better minus worse, ``[E]``, as the edge's annotator and aspect have it."""
        rewards = self.rewards(scores)
        return rewards[edges.better] - rewards[edges.worse]

    def probabilities(self, margins: Tensor) -> Tensor | None:
        """Return the probability ``[E]`` that margins stand for, given that it is no tie; None if they stand for none."""
        return torch.sigmoid(margins)

    def metrics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term]:
        """Return the head's ``margin`` and ``accuracy`` over row edges by weight (a margin of 0 counts half)."""
        edges = rows(feedback)
        margins = self.head_margins(scores, edges).detach()
        hits = (torch.sign(margins) + 1) / 2
        total = edges.weight.sum()
        return {"margin": Term((edges.weight * margins).sum(), total), "accuracy": Term((edges.weight * hits).sum(), total)}

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        """Return each term's weight, from a forward pass over features of zeros."""
        assert self.attachment is not None, "attach the reward model first"
        count, decisions = scores_mask.shape[0], scores_mask.shape[-1]
        extras: dict[str, Tensor] = {}
        for name, size in self.attachment.sizes.items():
            shape = (count, decisions, size) if name == "states" else (count, size)
            extras[name] = torch.zeros(shape, device=scores_mask.device, dtype=next(self.parameters()).dtype)
        if "states" in extras:
            extras["step_ends"] = torch.zeros(count, decisions, dtype=torch.bool, device=scores_mask.device)
        blank = Scores(torch.zeros(scores_mask.shape, device=scores_mask.device), scores_mask, kind, extras)  # type: ignore[arg-type]
        with torch.no_grad():
            return {name: term.weight for name, term in self(blank, {}, feedback).items()}

    def learning_rate_scales(self) -> dict[str, float]:
        return {name: self.config.learning_rate_scale for name, _ in self.named_parameters()}


def head(width: int, outputs: int, hidden_layers: Sequence[int] = (), *, bias: bool = False, key: str = "head") -> nn.Sequential:
    """Return a linear head, or a perceptron (GELU). Its last layer starts at 0; those before it as torch's, from a keyed seed.

    Bradley-Terry cannot see a constant, so its last layer has no bias.
    """
    widths = (width, *hidden_layers)
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths)):
        layers += [keyed_linear(before, after, f"{key} {number}"), nn.GELU()]
    last = nn.Linear(widths[-1], outputs, bias=bias)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*layers, last)


def keyed_linear(before: int, after: int, key: str) -> nn.Linear:
    """Return a linear layer whose entries are uniform within ``1 / sqrt(before)``, the same in every run."""
    layer = nn.Linear(before, after)
    generator = keyed_generator("reward model", key)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) / before**0.5)
    return layer


def mask_of(names: Sequence[str], wanted: str, device: torch.device) -> Tensor:
    """Return where ``names`` is ``wanted``, bool, as long as ``names``."""
    return torch.tensor([name == wanted for name in names], dtype=torch.bool, device=device)


@dataclass
class Pairs:
    """Two samples each, with a weight: tied pairs of a batch."""

    first: Tensor
    second: Tensor
    weight: Tensor = field(repr=False)


def tied_pairs(feedback: FeedbackTensors) -> Pairs:
    """Return every pair of responses to one prompt that a ranking ties, once, with the ranking's weight."""
    ranked = feedback.rankings
    together = (ranked.ranking[:, None] == ranked.ranking) & (ranked.rank[:, None] == ranked.rank)
    together &= ~ranked.columns[:, None]
    first, second = together.triu(1).nonzero(as_tuple=True)
    return Pairs(ranked.sample[first], ranked.sample[second], ranked.weight[first])
