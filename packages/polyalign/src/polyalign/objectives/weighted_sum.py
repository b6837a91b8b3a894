"""A weighted sum of objectives on one forward pass: MPO, DPO with a likelihood term, or any mixture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import LongTensor, Tensor, nn

from polyalign.errors import ConfigError
from polyalign.objectives.base import Experience, FeedbackTensors, Objective, Term, Total, alone
from polyalign.objectives.terms import WeightedSumConfig
from polyalign.policies.base import Policy, Scores
from polyalign.records.samples import Example
from polyalign.slots import numbered


class WeightedSum(Objective):
    """``sum of weight * loss`` over the objectives in ``terms``. Each keeps its own normalisation, state and options.

    ``mpo``: 0.8 * DPO + 0.2 * BCO + 1.0 * SFT on the better responses (Wang et al. 2024, arXiv 2411.10442), as TRL 1.16's
    ``loss_type=["sigmoid", "bco_pair", "sft"]``, but for BCO's running baseline. ``weighted_sum``: DPO + SFT unless told
    otherwise, TRL's ``rpo_alpha: 1`` of old (Pang et al. 2024, arXiv 2404.19733).

    What is needed of policy, reference and data is the union over the terms; the scope is the widest. Terms are named
    ``objective/term`` in metrics, weights multiplied in, so that they add up to the loss. At the reference: the weighted sum
    of the terms' values, if all of them have one.
    """

    def __init__(self, config: WeightedSumConfig | None = None) -> None:
        super().__init__()
        self.config = config or WeightedSumConfig()
        self.objectives = nn.ModuleList([term.spec.load()(term.config) for term in self.config.terms])
        parts = [part for _, _, part in self._parts()]
        self.needs = frozenset().union(*(part.needs for part in parts))
        self.wants = frozenset().union(*(part.wants for part in parts))
        self.reference_wants = frozenset[str]().union(*(part.reference_wants for part in parts))
        self.further_references = frozenset[str]().union(*(part.further_references for part in parts))
        self.scope = max((part.scope for part in parts), key=("edge", "group", "batch").index)
        appraising = [part.appraises_with for part in parts if part.appraises_with is not None]
        if len(appraising) > 1:
            names = ", ".join(label for label, _, part in self._parts() if part.appraises_with is not None)
            raise ConfigError(f"{names} each make advantages of their own; keep one of them in a weighted sum")
        self.appraises_with = frozenset[str]().union(*appraising) if appraising else None
        self.statistic_names = tuple(f"{label}/{name}" for label, _, part in self._parts() for name in part.statistic_names)
        values = [(weight, part.value_at_reference) for _, weight, part in self._parts()]
        known = [weight * value for weight, value in values if value is not None]
        self.value_at_reference = sum(known) if len(known) == len(values) else None

    def attach(self, policy: Policy, data: Iterable[Example]) -> None:
        examples = list(data)
        for _, _, part in self._parts():
            part.attach(policy, examples)

    def learning_rate_scales(self) -> dict[str, float]:
        return {
            f"objectives.{number}.{name}": scale
            for number, (_, _, part) in enumerate(self._parts())
            for name, scale in part.learning_rate_scales().items()
        }

    @property
    def splittable(self) -> bool:
        return all(part.splittable for _, _, part in self._parts())

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return every term of every objective, weights multiplied in."""
        return {
            f"{label}/{name}": Term(weight * term.sum, term.weight)
            for label, weight, part in self._parts()
            for name, term in part(scores, references, feedback, _own(statistics, label)).items()
        }

    def statistics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term | Tensor]:
        return {
            f"{label}/{name}": value
            for label, _, part in self._parts()
            for name, value in part.statistics(scores, references, feedback).items()
        }

    def observe(self, statistics: Mapping[str, Tensor]) -> None:
        for label, _, part in self._parts():
            if own := _own(statistics, label):
                part.observe(own)

    def appraise(self, experience: Experience, mask: Tensor, group: LongTensor, total: Total = alone) -> Experience:
        """Return what the one term that appraises makes of it (`WeightedSumConfig` allows no second)."""
        for _, _, part in self._parts():
            if part.appraises_with is not None:
                return part.appraise(experience, mask, group, total)
        return experience

    def metrics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term]:
        return {
            f"{label}/{name}": value
            for label, _, part in self._parts()
            for name, value in part.metrics(scores, references, feedback).items()
        }

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        return {
            f"{label}/{name}": weight
            for label, _, part in self._parts()
            for name, weight in part.weights(scores_mask, kind, feedback).items()
        }

    def _parts(self) -> Iterator[tuple[str, float, Objective]]:
        """Yield (label, weight, objective) of each term; a name that is used again is numbered."""
        labels = numbered([term.name for term in self.config.terms])
        for label, term, objective in zip(labels, self.config.terms, self.objectives, strict=True):
            assert isinstance(objective, Objective)
            yield label, term.weight, objective


def _own(statistics: Mapping[str, Tensor] | None, label: str) -> dict[str, Tensor] | None:
    """Return the statistics of one term under their own names; None where there are none of it."""
    prefix = f"{label}/"
    return {name.removeprefix(prefix): value for name, value in (statistics or {}).items() if name.startswith(prefix)} or None
