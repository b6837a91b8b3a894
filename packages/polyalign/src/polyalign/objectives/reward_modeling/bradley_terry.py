"""Reward models from comparisons: Bradley-Terry, with ties, over several aspects, PickScore's softmax, HPSv3's uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyalign.errors import TrainingError
from polyalign.objectives.base import Edges, FeedbackTensors, Term
from polyalign.objectives.links import smoothed_sigmoid
from polyalign.objectives.margins import rows
from polyalign.objectives.reward_modeling.aspects import Aspects
from polyalign.objectives.reward_modeling.base import ANYBODY, Attachment, Reader, RewardModel, head, tied_pairs
from polyalign.objectives.reward_modeling.ties import davidson_tie, davidson_win, rao_kupper_tie, rao_kupper_win
from polyalign.objectives.reward_modeling_config import (
    AspectsConfig,
    BradleyTerryConfig,
    HPSv3Config,
    PickScoreObjectiveConfig,
)
from polyalign.policies.base import Scores

LARGEST_SCALE = 100.0  # CLIP's bound on exp(logit scale), which PickScore and PAL-B keep
STARTING_SCALE = math.log(1 / 0.07)


class BradleyTerry(RewardModel):
    """``-log sigma(r_better - r_worse - margin)`` on a head over the state of a response's last real token.

    Bradley and Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155, eq. 1). ``centring`` adds ``c (r_better + r_worse)^2``
    (Eisenstein et al. 2023, arXiv 2312.09244). With ``ties``, pairs that a ranking ties count too, see `ties`: each with the
    ranking's weight. Margins and centring as in TRL 1.16's RewardTrainer, which has neither weights nor ties, and takes the mean
    per micro-batch. Only edges between two responses to one prompt count.

    ``salmon``: the same on records that carry principles in their prompts (`records.principles`; Sun et al. 2023,
    arXiv 2310.05910), so that one model scores by whatever principles it is given.
    """

    needs = frozenset({"hidden", "edges"})

    def __init__(self, config: BradleyTerryConfig | None = None) -> None:
        super().__init__()
        self.config: BradleyTerryConfig = config or BradleyTerryConfig()
        self.value_at_reference = None if self.config.ties == "davidson" else self.losses(torch.zeros(())).item()
        if self.config.ties != "none":
            self.value_at_reference = None  # it depends on how many ties there are

    def build(self, attachment: Attachment) -> None:
        self.head = head(attachment.sizes["hidden"], 1, self.config.hidden_layers)

    def rewards(self, scores: Scores, reader: Reader = ANYBODY) -> Tensor:
        return self.head(scores.extras["hidden"])[:, 0]  # type: ignore[no-any-return]

    def losses(self, margins: Tensor) -> Tensor:
        """Return the loss of strict preferences with these margins, elementwise."""
        match self.config.ties:
            case "none":
                return -F.logsigmoid(margins)
            case "rao_kupper":
                return rao_kupper_win(margins, self.config.tie)
            case "davidson":
                return davidson_win(margins, self.config.tie)

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``preference`` (weighted losses over strict and, if modelled, tied pairs) and, if asked for, ``centring``."""
        edges, rewards = rows(feedback), self.rewards(scores)
        better, worse = rewards[edges.better], rewards[edges.worse]
        total = (edges.weight * self.losses(better - worse - edges.margin)).sum()
        weight = edges.weight.sum()
        if self.config.ties != "none":
            tied = tied_pairs(feedback)
            loss = rao_kupper_tie if self.config.ties == "rao_kupper" else davidson_tie
            total = total + (tied.weight * loss(rewards[tied.first] - rewards[tied.second], self.config.tie)).sum()
            weight = weight + tied.weight.sum()
        terms = {"preference": Term(total, weight)}
        if self.config.centring:
            squares = (edges.weight * (better + worse) ** 2).sum()
            terms["centring"] = Term(self.config.centring * squares, edges.weight.sum())
        return terms

    def probabilities(self, margins: Tensor) -> Tensor:
        """Return P(better wins | no tie). Davidson's is Bradley-Terry's; Rao-Kupper's is steeper."""
        return torch.sigmoid(self.losses(-margins) - self.losses(margins))


class BradleyTerryAspects(Aspects):
    """Bradley-Terry with a column of the head per aspect of the comparisons, such as helpfulness and safety.

    A comparison trains the column of its own aspect; what nobody compared is left out. Every aspect is a term of its own, so
    that rare aspects count as much as frequent ones, times ``aspect_weights``. The reward is the weighted sum of the columns
    (VideoReward, arXiv 2501.13918, section 3.2), or one of them.
    """

    needs = frozenset({"hidden", "edges"})

    def __init__(self, config: AspectsConfig | None = None) -> None:
        super().__init__(config or AspectsConfig())

    def in_data(self, attachment: Attachment) -> Sequence[str]:
        return attachment.compared

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return a term per aspect, ``preference/ASPECT``."""
        edges = rows(feedback)
        values = self.columns(scores)  # [N, A]
        losses = -F.logsigmoid(values[edges.better] - values[edges.worse] - edges.margin[:, None])  # [E, A]
        return self.terms("preference", losses, edges.aspect, edges.weight)

    def head_margins(self, scores: Scores, edges: Edges) -> Tensor:
        """Return the margin on each edge's own aspect; of an aspect that the model never learnt, on the total reward."""
        values = self.columns(scores)
        apart = values[edges.better] - values[edges.worse]  # [E, A]
        own = self.one_hot(edges.aspect, apart)
        known = own.any(1)
        return torch.where(known, (apart * own).sum(1), apart @ self.weight_of_columns(apart))


class PickScore(RewardModel):
    """PickScore's loss (Kirstain et al. 2023, arXiv 2305.01569, section 3): the divergence between the choice that people made,
    (1, 0) or (1/2, 1/2) for a tie, and the softmax over the scores of the two responses.

    That is ``-log sigma(z)`` for a strict preference and ``-1/2 log sigma(z) - 1/2 log sigma(-z) - log 2`` for a tie, 0 where a
    tie is perfect. ``similarity: cosine`` scores as CLIP does, ``exp(scale) cos(prompt, response)``, with exp(scale) learnt
    from 1 / 0.07 and kept below 100. The authors weigh an example by one over the number of examples of its prompt: give
    the comparisons such a strength.
    """

    def __init__(self, config: PickScoreObjectiveConfig | None = None) -> None:
        super().__init__()
        self.config: PickScoreObjectiveConfig = config or PickScoreObjectiveConfig()
        if self.config.similarity == "cosine":
            self.wants = self.wants | {"prompt_hidden"}
            self.needs = self.needs | {"prompt_hidden"}

    def build(self, attachment: Attachment) -> None:
        width = attachment.sizes["hidden"]
        if self.config.similarity == "head":
            self.head = head(width, 1, self.config.hidden_layers)
            return
        if (other := attachment.sizes["prompt_hidden"]) != width:
            raise TrainingError(
                f"similarity: cosine compares prompt and response, but their features have {other} and {width} numbers; "
                "use similarity: head, or features: response with encoder-features"
            )
        self.scale = nn.Parameter(torch.tensor(STARTING_SCALE))
        self.of_prompt, self.of_response = (nn.Linear(width, width, bias=False) for _ in range(2))
        for projection in (self.of_prompt, self.of_response):
            nn.init.eye_(projection.weight)

    def rewards(self, scores: Scores, reader: Reader = ANYBODY) -> Tensor:
        response = scores.extras["hidden"]
        if self.config.similarity == "head":
            return self.head(response)[:, 0]  # type: ignore[no-any-return]
        cosine = F.cosine_similarity(self.of_prompt(scores.extras["prompt_hidden"]), self.of_response(response), dim=-1)
        return self.scale.exp().clamp(max=LARGEST_SCALE) * cosine

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * divergence, sum of weights)}`` over strict and tied pairs."""
        edges, tied, rewards = rows(feedback), tied_pairs(feedback), self.rewards(scores)
        strict = smoothed_sigmoid(rewards[edges.better] - rewards[edges.worse] - edges.margin, 0.0)
        even = smoothed_sigmoid(rewards[tied.first] - rewards[tied.second], 0.5) - math.log(2)
        total = (edges.weight * strict).sum() + (tied.weight * even).sum()
        return {"preference": Term(total, edges.weight.sum() + tied.weight.sum())}


class HPSv3(RewardModel):
    """HPSv3 (Ma et al. 2025, arXiv 2508.03789, section 3.2): a response's reward is a Gaussian, and the loss the expected
    Bradley-Terry loss ``-E log sigma(z)``, ``z ~ N(mean_better - mean_worse - margin, sd_better^2 + sd_worse^2)``.

    The head gives mean and log sd (sd 1 at first, at most 10). The authors draw z 1,000 times per pair; we integrate by the
    trapezoidal rule over 8 standard deviations either side, which draws nothing and is exact to 1e-5. The reward is the mean.
    """

    # The rule converges geometrically: poles of log sigma lie pi / sd from the axis, so sd 14 (two sides of 10) wants h = 0.1.
    REACH, NODES = 8.0, 161
    nodes: Tensor
    node_weights: Tensor
    LARGEST_LOG_DEVIATION = math.log(10.0)

    def __init__(self, config: HPSv3Config | None = None) -> None:
        super().__init__()
        self.config: HPSv3Config = config or HPSv3Config()
        nodes = torch.linspace(-self.REACH, self.REACH, self.NODES, dtype=torch.float64)
        weights = torch.softmax(-(nodes**2) / 2, 0)  # the Gaussian's density at the nodes, made to sum to 1
        self.register_buffer("nodes", nodes.float(), persistent=False)
        self.register_buffer("node_weights", weights.float(), persistent=False)
        unsure = torch.full((), math.sqrt(2.0))
        self.value_at_reference = self.expected_loss(torch.zeros(()), unsure).item()

    def build(self, attachment: Attachment) -> None:
        self.head = head(attachment.sizes["hidden"], 2, self.config.hidden_layers, bias=True)

    def gaussians(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Return (means, standard deviations) of the rewards, ``[N]`` each; the deviation is at most 10."""
        mean, log_deviation = self.head(scores.extras["hidden"]).unbind(-1)
        return mean, log_deviation.clamp(max=self.LARGEST_LOG_DEVIATION).exp()

    def rewards(self, scores: Scores, reader: Reader = ANYBODY) -> Tensor:
        return self.gaussians(scores)[0]

    def parts(self, scores: Scores) -> dict[str, Tensor]:
        return dict(zip(("mean", "deviation"), self.gaussians(scores), strict=True))

    def expected_loss(self, mean: Tensor, deviation: Tensor) -> Tensor:
        """Return ``-E log sigma(z)`` for Gaussian z, elementwise."""
        z = mean[..., None] + deviation[..., None] * self.nodes
        return (-F.logsigmoid(z) * self.node_weights).sum(-1)

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return ``{"preference": (sum of weight * expected loss, sum of weights)}``."""
        edges = rows(feedback)
        mean, deviation = self.gaussians(scores)
        together = torch.hypot(deviation[edges.better], deviation[edges.worse])
        losses = self.expected_loss(mean[edges.better] - mean[edges.worse] - edges.margin, together)
        return {"preference": Term((edges.weight * losses).sum(), edges.weight.sum())}
