"""An objective: a function of scores, reference scores and feedback. It knows no modality and no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import LongTensor, Tensor, nn

from polyalign.policies.base import Batch, Policy, Scores
from polyalign.records.samples import Example

Scope = Literal["edge", "group", "batch"]
Total = Callable[[Tensor], Tensor]


def alone(tensor: Tensor) -> Tensor:
    """Return the tensor: what a total over processes is where there is one."""
    return tensor


class Term(NamedTuple):
    """A loss as (sum, weight). The trainer divides the total of sums by the total of weights over the
    accumulation window and all ranks: a mean of means is wrong. ``weight`` never depends on log-probabilities."""

    sum: Tensor
    weight: Tensor


@dataclass
class Edges:
    """Preferences better -> worse between samples of the batch; every field has length E."""

    better: LongTensor
    worse: LongTensor
    weight: Tensor
    margin: Tensor
    ranking: LongTensor  # id of the ranking, unique in the batch
    columns: Tensor  # bool: True where one response is compared under two prompts
    aspect: tuple[str, ...] = ()
    annotator: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return len(self.better)

    def where(self, keep: Tensor) -> Edges:
        """Return the edges at which ``keep`` ``[E]`` (bool) is true, in order."""
        chosen = keep.nonzero().flatten()
        named = chosen.tolist() if self.aspect or self.annotator else []
        return Edges(
            better=self.better[chosen],  # type: ignore[arg-type]
            worse=self.worse[chosen],  # type: ignore[arg-type]
            weight=self.weight[chosen],
            margin=self.margin[chosen],
            ranking=self.ranking[chosen],  # type: ignore[arg-type]
            columns=self.columns[chosen],
            aspect=tuple(self.aspect[index] for index in named) if self.aspect else (),
            annotator=tuple(self.annotator[index] for index in named) if self.annotator else (),
        )


@dataclass
class Ratings:
    sample: LongTensor
    value: Tensor  # on [0, 1]
    aspect: tuple[str, ...] = ()
    annotator: tuple[str | None, ...] = ()


@dataclass
class Rankings:
    sample: LongTensor
    rank: LongTensor  # 0 is best; equal ranks tie
    ranking: LongTensor
    weight: Tensor  # of the ranking, repeated for each of its samples
    columns: Tensor  # bool: True where one response is compared under several prompts


@dataclass
class Segments:
    sample: LongTensor
    start: Tensor
    end: Tensor
    value: Tensor
    unit: tuple[str, ...] = ()


@dataclass
class Experience:
    """What the policy did itself, how it was rewarded, and with what likelihood it did so, for the N samples of a batch.

    All without gradient, taken when the samples were generated. Decisions are padded as in `Scores`; what stands at padding
    means nothing.

    ``rewards`` ``[N]``: one number per sample, as rewarded (before any penalty). ``decision_rewards`` ``[N, T]``: what each
    decision earned of it by itself; None: all of it falls due at the last decision. ``advantages`` ``[N]`` or ``[N, T]``: how
    much better than expected, per sample or per decision; zeros until `Objective.appraise` has filled them in.
    ``old_log_probs`` ``[N, D, T]``: of the decisions under the policy that made them; None where a sampler keeps none.
    ``reference_log_probs`` ``[N, D, T]`` and ``old_values`` ``[N, T]``: where `Objective.appraises_with` asks for them.
    ``returns`` ``[N, T]``: what a value head should have predicted. ``longest``: the most decisions a response may have.
    """

    rewards: Tensor
    advantages: Tensor
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None
    decision_rewards: Tensor | None = None
    longest: int = 0

    def rows(self, chosen: Tensor, decisions: int) -> Experience:
        """Return the samples ``chosen`` (indices), padded to ``decisions``."""

        def cut(name: str) -> object:
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                return value
            return value[chosen] if value.ndim == 1 else value[chosen][..., :decisions]

        return Experience(**{f.name: cut(f.name) for f in fields(self)})  # type: ignore[arg-type]


RESPONSE, MISMATCH, SELF_SAMPLE = 0, 1, 2
_ROLES = {"response": RESPONSE, "mismatch": MISMATCH, "self_sample": SELF_SAMPLE}


@dataclass
class FeedbackTensors:
    """All feedback of one batch, as indices into its N samples.

    ``group`` ``[N]``: number of the example a sample belongs to. ``role`` ``[N]``: RESPONSE, MISMATCH or SELF_SAMPLE.
    ``label`` ``[N]``: +1 desirable, -1 undesirable, 0 unlabelled. ``groups``: how many examples the batch holds.
    ``experience``: where the policy generated the samples itself; the samples of one prompt are one group.
    """

    edges: Edges
    rankings: Rankings
    ratings: Ratings
    segments: Segments
    group: LongTensor
    role: LongTensor
    label: LongTensor
    groups: int
    experience: Experience | None = None

    def to(self, device: torch.device | str) -> FeedbackTensors:
        def moved(part: object) -> object:
            if isinstance(part, Tensor):
                return part.to(device)
            if isinstance(part, Edges | Rankings | Ratings | Segments | Experience):
                return type(part)(**{f.name: moved(getattr(part, f.name)) for f in fields(part)})  # type: ignore[arg-type]
            return part

        return FeedbackTensors(**{f.name: moved(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> FeedbackTensors:
        """Lay out the feedback of the examples, whose samples stand one after another in the batch."""
        edges, rankings, ratings, segments = [], [], [], []
        group, role, label = [], [], []
        offset, ranking_offset = 0, 0
        for number, example in enumerate(examples):
            count = len(example.samples)
            edges += [(e, offset, ranking_offset) for e in example.edges]
            rankings += [(r, r.sample + offset, r.ranking + ranking_offset) for r in example.rankings]
            ratings += [(r, r.sample + offset) for r in example.ratings]
            segments += [(s, s.sample + offset) for s in example.segments]
            group += [number] * count
            role += [_ROLES[sample.role] for sample in example.samples]
            label += list(example.labels) if example.labels else [0] * count
            offset += count
            ids = [e.ranking for e in example.edges] + [r.ranking for r in example.rankings]
            ranking_offset += max(ids, default=-1) + 1

        def long(values: Sequence[int]) -> LongTensor:
            return torch.tensor(values, dtype=torch.long)  # type: ignore[return-value]

        def real(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32)

        return cls(
            edges=Edges(
                better=long([e.better + at for e, at, _ in edges]),
                worse=long([e.worse + at for e, at, _ in edges]),
                weight=real([e.weight for e, _, _ in edges]),
                margin=real([e.margin for e, _, _ in edges]),
                ranking=long([e.ranking + first for e, _, first in edges]),
                columns=torch.tensor([e.contrast == "prompt" for e, _, _ in edges], dtype=torch.bool),
                aspect=tuple(e.aspect for e, _, _ in edges),
                annotator=tuple(e.annotator for e, _, _ in edges),
            ),
            rankings=Rankings(
                sample=long([at for _, at, _ in rankings]),
                rank=long([r.rank for r, _, _ in rankings]),
                ranking=long([number for _, _, number in rankings]),
                weight=real([r.weight for r, _, _ in rankings]),
                columns=torch.tensor([r.contrast == "prompt" for r, _, _ in rankings], dtype=torch.bool),
            ),
            ratings=Ratings(
                long([at for _, at in ratings]),
                real([r.value for r, _ in ratings]),
                tuple(r.aspect for r, _ in ratings),
                tuple(r.annotator for r, _ in ratings),
            ),
            segments=Segments(
                long([at for _, at in segments]),
                real([s.start for s, _ in segments]),
                real([s.end for s, _ in segments]),
                real([s.value for s, _ in segments]),
                tuple(s.unit for s, _ in segments),
            ),
            group=long(group),
            role=long(role),
            label=long(label),
            groups=len(examples),
        )


class Objective(nn.Module):
    """Loss over scores and feedback. May own parameters and buffers: they are optimised, saved and resumed.

    ``needs``: what must be there before the run starts; names of `Policy.provides`, and "reference", "edges", "rankings",
    "labels", "ratings", "segments", "mismatch", "grid", "rollouts".
    ``wants``: extras that the policy's forward must return; ``reference_wants``: that the reference's must.
    ``further_references``: names of references besides "reference" that it reads where the recipe gives them.
    ``scope``: "edge" or "group" terms add up over any split of the data; "batch" terms need statistics of the whole
    window, which `statistics` supplies (else accumulation is refused); ``statistic_names`` names them.
    ``appraises_with``: None for objectives that read no `Experience`; else which scores `appraise` wants of the samples as they
    were generated: "reference", "values", or nothing besides rewards and old log-probabilities.
    ``training`` (of every module) is off while held-out data is scored: state such as a running mean then stands still.
    """

    needs: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()
    reference_wants: frozenset[str] = frozenset()
    further_references: frozenset[str] = frozenset()
    scope: Scope = "edge"
    statistic_names: tuple[str, ...] = ()
    value_at_reference: float | None = None
    appraises_with: frozenset[str] | None = None

    @property
    def splittable(self) -> bool:
        """Whether a window may be split over micro-batches and processes."""
        return self.scope != "batch" or bool(self.statistic_names)

    def attach(self, policy: Policy, data: Iterable[Example]) -> None:
        """Make the parameters whose shapes depend on the policy or on the training data (in any order: each process sees all
        of it). Called once, before references, optimizer and checkpoints look at the parameters. Default: nothing to do."""

    def learning_rate_scales(self) -> dict[str, float]:
        """Return factors on the learning rate by parameter name, where a parameter has its own. Default: none has."""
        return {}

    def arranged(self, batch: Batch) -> Batch:
        """Return the batch with the settings that the policy's forward reads for this objective. Default: as it is."""
        return batch

    def head_margins(self, scores: Scores, edges: Edges) -> Tensor | None:
        """Return by how much the objective's own head prefers the better side, ``[E]``; None if the policy itself prefers."""
        return None

    def forward(
        self,
        scores: Scores,
        references: Mapping[str, Scores],
        feedback: FeedbackTensors,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Term]:
        """Return named terms; their total is the loss. ``references`` holds "reference" when `needs` names it, and
        those of `further_references` that the recipe gives.

        ``statistics`` are the window's, as `averaged` gives them; None means: compute them from this batch.
        """
        raise NotImplementedError

    def statistics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term | Tensor]:
        """Return what a "batch"-scope objective must know of the window, detached, from one part of it. Others need nothing.

        A `Term` becomes sum / weight over all parts. The rows of a plain tensor are collected, in no particular order.
        """
        return {}

    def observe(self, statistics: Mapping[str, Tensor]) -> None:
        """Take in the statistics of a window that has been trained on. Called once per optimiser step, on every process."""

    def appraise(self, experience: Experience, mask: Tensor, group: LongTensor, total: Total = alone) -> Experience:
        """Return fresh experience with its advantages (and returns) filled in. Called once per round of rollouts.

        ``mask`` ``[N, D, T]``: which decisions are real; ``group`` ``[N]``: which prompt a sample belongs to, whole groups;
        ``total`` adds a tensor up over all processes. The default leaves the experience as it is.
        """
        return experience

    def metrics(self, scores: Scores, references: Mapping[str, Scores], feedback: FeedbackTensors) -> dict[str, Term]:
        """Return detached numbers worth watching besides the loss, as `Term`s under the same names for every batch."""
        return {}

    def weights(self, scores_mask: Tensor, kind: LongTensor, feedback: FeedbackTensors) -> dict[str, Tensor]:
        """Return each term's weight before any forward pass, from the mask and the feedback alone.

        The default calls `forward` on all-zero scores, which is exact since weights do not depend on log-probabilities.
        Objectives that read extras override it.
        """
        blank = Scores(torch.zeros(scores_mask.shape, device=scores_mask.device), scores_mask, kind)  # type: ignore[arg-type]
        with torch.no_grad():
            return {name: term.weight for name, term in self.forward(blank, {"reference": blank}, feedback).items()}


def averaged(statistics: Mapping[str, Term | Tensor]) -> dict[str, Tensor]:
    """Return statistics as `Objective.forward` takes them: sum / weight (0 where the weight is 0), collected rows as they are."""
    return {
        name: value if isinstance(value, Tensor) else value.sum / torch.where(value.weight > 0, value.weight, 1.0)
        for name, value in statistics.items()
    }
