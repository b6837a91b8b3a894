"""PAL: people differ. Each annotator is a mixture of a few prototypes, learnt from everybody's comparisons together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyalign.errors import TrainingError, nearest
from polyalign.objectives.base import Edges, FeedbackTensors, Term
from polyalign.objectives.margins import rows
from polyalign.objectives.reward_modeling.base import ANYBODY, Attachment, Reader, RewardModel, keyed_linear
from polyalign.objectives.reward_modeling.bradley_terry import LARGEST_SCALE, STARTING_SCALE
from polyalign.objectives.reward_modeling_config import PALAConfig, PALBConfig, PALConfig
from polyalign.policies.base import Scores
from polyalign.randomness import keyed_generator


def feature_map(before: int, after: int, hidden_layers: Sequence[int], key: str) -> nn.Sequential:
    """Return a linear map, or a perceptron (GELU), from a keyed seed."""
    widths = (before, *hidden_layers, after)
    layers: list[nn.Module] = [keyed_linear(widths[0], widths[1], f"{key} 0")]
    for number in range(1, len(widths) - 1):
        layers += [nn.GELU(), keyed_linear(widths[number], widths[number + 1], f"{key} {number}")]
    return nn.Sequential(*layers)


class PAL(RewardModel):
    """Base of PAL-A and PAL-B (Chen et al. 2025, arXiv 2406.08469): annotator i has weights ``w_i = softmax(W_i / T)`` on the
    simplex of K prototypes, and prefers what lies close to the ideal point that they make.

    The loss is on the difference of the two rewards as this annotator has them: ``-log sigma(difference - margin)``, or
    ``max(0, 1 - difference + margin)``. Comparisons without an annotator are one annotator's, called "". Somebody whom
    training never met gets the mean of all weights, until `adapt` has learnt theirs from a few comparisons with all else fixed.
    """

    config: PALConfig
    annotators: tuple[str, ...] = ()

    def build(self, attachment: Attachment) -> None:
        self.annotators = attachment.annotators
        count = self.config.prototypes
        self.mixture = nn.Parameter(torch.randn(len(self.annotators), count, generator=keyed_generator("PAL", "mixture")))
        width = attachment.sizes["hidden"]
        self.width, self.dimension = width, self.config.dimension or width
        self.map = feature_map(width, self.dimension, self.config.hidden_layers, "map")

    def rewards_of(self, scores: Scores, weights: Tensor) -> Tensor:
        """Return the rewards ``[N]`` under weights ``[N, K]`` of the prototypes, one row per sample."""
        raise NotImplementedError

    def weights_of(self, names: Sequence[str]) -> Tensor:
        """Return weights on the simplex, ``[len(names), K]``; the mean of all for somebody unknown."""
        table = torch.softmax(self.mixture / self.config.temperature, -1)  # [A, K]
        table = torch.cat([table, table.mean(0, keepdim=True)])
        place = {name: number for number, name in enumerate(self.annotators)}
        return table[[place.get(name, len(place)) for name in names]]

    def rewards(self, scores: Scores, reader: Reader = ANYBODY) -> Tensor:
        if reader.annotator is not None and reader.annotator not in self.annotators:
            known = f"{nearest(reader.annotator, self.annotators)} It knows {len(self.annotators)}; see `adapt` for others"
            raise TrainingError(f"the reward model knows no annotator {reader.annotator!r}.{known}")
        everybody = [reader.annotator] if reader.annotator is not None else [None]
        weights = self.weights_of([name if name is not None else "\0" for name in everybody])
        return self.rewards_of(scores, weights.expand(len(scores.log_probs), -1))

    def head_margins(self, scores: Scores, edges: Edges) -> Tensor:
        names = [name or "" for name in edges.annotator] if edges.annotator else [""] * len(edges)
        return self.margins_under(scores, edges, self.weights_of(names))

    def margins_under(self, scores: Scores, edges: Edges, weights: Tensor) -> Tensor:
        """Return reward of better minus worse, ``[E]``, under weights ``[E, K]``."""
        sides = torch.cat([edges.better, edges.worse])
        parts: dict[str, Any] = {name: getattr(scores, name)[sides] for name in ("log_probs", "mask", "kind")}
        chosen = Scores(**parts, extras={name: scores.extras[name][sides] for name in self.wants})
        better, worse = self.rewards_of(chosen, weights.repeat(2, 1)).chunk(2)
        return better - worse

    def losses(self, margins: Tensor) -> Tensor:
        return -F.logsigmoid(margins) if self.config.loss == "logistic" else torch.relu(1 - margins)

    def probabilities(self, margins: Tensor) -> Tensor | None:
        return torch.sigmoid(margins) if self.config.loss == "logistic" else None

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * loss, sum of weights)}`` over the row edges."""
        edges = rows(feedback)
        losses = self.losses(self.head_margins(scores, edges) - edges.margin)
        return {"preference": Term((edges.weight * losses).sum(), edges.weight.sum())}

    def adapt(self, name: str, scores: Scores, edges: Edges, *, steps: int = 200, learning_rate: float = 0.1) -> Tensor:
        """Learn the weights of annotator ``name`` from a few comparisons, all else fixed; return them, ``[K]``.

        ``scores`` hold the features of the compared samples. The weights start at the mean of everybody's and follow Adam on the
        training loss. A name that is known already is learnt anew.
        """
        # In logits: of the mean, so that nothing is assumed of the newcomer.
        mean = torch.softmax(self.mixture.detach() / self.config.temperature, -1).mean(0)
        logits = (self.config.temperature * mean.log()).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=learning_rate)
        fixed = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        self.requires_grad_(False)
        try:
            for _ in range(steps):
                weights = torch.softmax(logits / self.config.temperature, -1).expand(len(edges), -1)
                losses = self.losses(self.margins_under(scores, edges, weights) - edges.margin)
                optimizer.zero_grad()
                ((edges.weight * losses).sum() / edges.weight.sum()).backward()
                optimizer.step()
        finally:
            for parameter, trains in fixed:
                parameter.requires_grad_(trains)
        self._remember(name, logits.detach())
        return torch.softmax(logits.detach() / self.config.temperature, -1)

    def _remember(self, name: str, logits: Tensor) -> None:
        assert self.attachment is not None
        if name in self.annotators:
            with torch.no_grad():
                self.mixture[self.annotators.index(name)] = logits
            return
        grown = torch.cat([self.mixture.detach(), logits[None]])
        self.mixture = nn.Parameter(grown, requires_grad=self.mixture.requires_grad)
        self.annotators = (*self.annotators, name)
        self.attachment = Attachment(**{**vars(self.attachment), "annotators": self.annotators})

    def learning_rate_scales(self) -> dict[str, float]:
        own = ("mixture", "prototypes", "scale")
        return {
            name: self.config.mixture_learning_rate_scale if name in own else self.config.learning_rate_scale
            for name, _ in self.named_parameters()
        }


class PALA(PAL):
    """PAL-A: one ideal point per annotator, whatever the prompt. Reward ``-||f(x) - a_i||`` (Euclidean, not squared), with
    ``a_i = f(w_i P)``, ``w_i f(P)`` or ``w_i P`` (``ideal``) for prototypes P, drawn from a Gaussian and scaled to length 1.

    With K = 1 it is an ideal-point model of a single person.
    """

    def __init__(self, config: PALAConfig | None = None) -> None:
        super().__init__()
        self.config: PALAConfig = config or PALAConfig()

    def build(self, attachment: Attachment) -> None:
        super().build(attachment)
        width = self.dimension if self.config.ideal == "mixture" else self.width
        drawn = torch.randn(self.config.prototypes, width, generator=keyed_generator("PAL", "prototypes"))
        self.prototypes = nn.Parameter(F.normalize(drawn, dim=-1))

    def rewards_of(self, scores: Scores, weights: Tensor) -> Tensor:
        match self.config.ideal:
            case "map_of_mixture":
                ideal = self.map(weights @ self.prototypes)
            case "mixture_of_maps":
                ideal = weights @ self.map(self.prototypes)
            case "mixture":
                ideal = weights @ self.prototypes
        apart: Tensor = self.map(scores.extras["hidden"]) - ideal
        return -torch.linalg.vector_norm(apart, dim=-1)  # type: ignore[no-any-return]


class PALB(PAL):
    """PAL-B: ideal points that depend on the prompt, ``a_i = sum_k w_ik g_k(prompt)``. Reward ``exp(l) cos(f(x), a_i)``, with
    exp(l) learnt from 1 / 0.07 and kept below 100.

    f reads the features of the response, the K maps g_k those of the prompt. The authors also score every token after the
    responses part; here the state after the whole response counts (their ``only_last``).
    """

    needs = frozenset({"hidden", "prompt_hidden", "edges"})
    wants = frozenset({"hidden", "prompt_hidden"})

    def __init__(self, config: PALBConfig | None = None) -> None:
        super().__init__()
        self.config: PALBConfig = config or PALBConfig()

    def build(self, attachment: Attachment) -> None:
        super().build(attachment)
        width = attachment.sizes["prompt_hidden"]
        self.scale = nn.Parameter(torch.tensor(STARTING_SCALE))
        self.prompt_maps = nn.ModuleList(
            feature_map(width, self.dimension, self.config.hidden_layers, f"prompt map {number}")
            for number in range(self.config.prototypes)
        )

    def rewards_of(self, scores: Scores, weights: Tensor) -> Tensor:
        prompt = scores.extras["prompt_hidden"]
        ideals = torch.stack([of_prompt(prompt) for of_prompt in self.prompt_maps], 1)  # [N, K, d]
        ideal = (weights[:, :, None] * ideals).sum(1)
        cosine = F.cosine_similarity(self.map(scores.extras["hidden"]), ideal, dim=-1)
        return self.scale.exp().clamp(max=LARGEST_SCALE) * cosine
