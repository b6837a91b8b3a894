"""From positions in the data stream to the micro-batches of one optimiser step.

Step k of a run is a pure function of (data, seed, k): resuming, splitting into micro-batches and splitting over
processes change neither the examples of a step nor their noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch.utils.data import DataLoader, Dataset

from polyalign.errors import TrainingError
from polyalign.objectives.base import FeedbackTensors
from polyalign.policies.base import Batch, Collator
from polyalign.records.samples import Example
from polyalign.training.config import TrainingConfig


class ExampleSource(Protocol):
    """Examples by index, and an endless keyed order over them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def position(self, position: int, seed: int) -> tuple[int, int]:
        """Return (index, epoch) of the example that stands at ``position`` of the endless stream."""
        ...


@dataclass
class MicroBatch:
    """Whole examples, collated: what one forward pass sees."""

    batch: Batch
    feedback: FeedbackTensors
    record_ids: tuple[str, ...]


@dataclass
class Window:
    """The micro-batches of one optimiser step on this process. ``metrics``: what making them found out, to be logged."""

    step: int
    micro_batches: list[MicroBatch]
    metrics: dict[str, float] = field(default_factory=dict)


def collate_examples(examples: Sequence[Example], collator: Collator) -> MicroBatch:
    """Collate whole examples into one forward pass; an example is never split, since its samples share draws."""
    samples = [sample for example in examples for sample in example.samples]
    return MicroBatch(collator(samples), FeedbackTensors.of(examples), tuple(example.record_id for example in examples))


def split(examples: Sequence[Example], collator: Collator, config: TrainingConfig) -> Iterator[list[Example]]:
    """Cut a process's share of a step into micro-batches, by count or by budget (`Collator.row_costs`).

    Where rows are padded, examples of like length come together first: a window's loss does not depend on its order.
    """
    limit, size = config.micro_batch_budget, config.micro_batch_size or len(examples)
    if limit is None and (size >= len(examples) or not collator.pads):
        for start in range(0, len(examples), size):
            yield list(examples[start : start + size])
        return
    costs = [collator.row_costs(example.samples) for example in examples]
    order = sorted(range(len(examples)), key=lambda number: max(costs[number])) if collator.pads else range(len(examples))
    group: list[Example] = []
    rows: list[int] = []
    for number in order:
        alone = _cost(costs[number], collator)
        if limit is not None and alone > limit:
            raise TrainingError(
                f"record {examples[number].record_id!r} alone costs {alone}, more than training.micro_batch_budget="
                f"{limit}; raise the budget or drop the record"
            )
        full = len(group) == size if limit is None else _cost(rows + costs[number], collator) > limit
        if group and full:
            yield group
            group, rows = [], []
        group.append(examples[number])
        rows += costs[number]
    if group:
        yield group


def _cost(rows: Sequence[int], collator: Collator) -> int:
    """Return what rows of these lengths cost in one batch, padding included."""
    return len(rows) * max(rows) if collator.pads else sum(rows)


def at_epoch(example: Example, epoch: int) -> Example:
    """Return the example with its samples marked by epoch, which keys their draws."""
    return replace(example, samples=tuple(replace(sample, epoch=epoch) for sample in example.samples))


class Steps(Dataset[Window]):
    """Maps a step number to its `Window`; picklable, so that loader workers prepare steps ahead."""

    def __init__(
        self, source: ExampleSource, collator: Collator, config: TrainingConfig, rank: int = 0, processes: int = 1
    ) -> None:
        if config.batch_size % processes:
            raise TrainingError(
                f"training.batch_size={config.batch_size} does not divide over {processes} processes; use a multiple of that"
            )
        if len(source) == 0:
            raise TrainingError("the training data gives no examples in this view; check data.view, data.aspect and data.tags")
        self.source, self.collator, self.config = source, collator, config
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> Window:
        share = self.config.batch_size // self.processes
        first = step * self.config.batch_size + self.rank * share
        examples = []
        for position in range(first, first + share):
            index, epoch = self.source.position(position, self.config.seed)
            examples.append(at_epoch(self.source[index], epoch))
        groups = split(examples, self.collator, self.config)
        return Window(step, [collate_examples(group, self.collator) for group in groups])

    def loader(self, first_step: int, last_step: int, workers: int, prefetch: int) -> Iterator[Window]:
        """Yield the windows of steps ``first_step`` to ``last_step - 1`` in order."""
        if workers == 0:
            return (self[step] for step in range(first_step, last_step))
        return iter(
            DataLoader(self, batch_size=None, sampler=range(first_step, last_step), num_workers=workers, prefetch_factor=prefetch)
        )


def fixed_batches(
    source: ExampleSource, collator: Collator, config: TrainingConfig, count: int, rank: int = 0, processes: int = 1
) -> list[MicroBatch]:
    """Collate this process's share of the first ``count`` examples, for evaluation with the draws of epoch 0."""
    examples = [at_epoch(source[index], 0) for index in range(rank, min(count, len(source)), processes)]
    return [collate_examples(group, collator) for group in split(examples, collator, config)] if examples else []
