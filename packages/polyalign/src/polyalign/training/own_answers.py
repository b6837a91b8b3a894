"""Records whose prompts the policy answers itself, anew every so many steps: what D2O holds bad responses against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from polyalign.cache import cache_folder
from polyalign.evaluation import self_samples
from polyalign.policies.base import Policy
from polyalign.randomness import keyed_seed
from polyalign.records.dataset import ExampleDataset
from polyalign.training.batches import Steps, Window
from polyalign.training.config import Recipe, SourceConfig


@dataclass
class OwnAnswers:
    """The recipe's training records with answers of the policy, one file per round in ``folder``, whole or absent.

    Round r is answered by the weights after its first ``r * every`` steps. A file that is there is not made again, so a run that
    was killed goes on with the answers it had.
    """

    recipe: Recipe
    policy: Policy
    folder: Path

    def __getitem__(self, number: int) -> ExampleDataset:
        """Return the examples of a round, of the view self_samples, ready for the policy's collator."""
        settings, data = self.recipe.data.self_samples, self.recipe.data
        assert settings is not None
        path = self.folder / f"round-{number:04d}.jsonl"
        if not (dist.is_initialized() and dist.get_rank()) and not path.exists():
            self_samples.write(
                self.policy,
                self_samples.records_in(data.train, data.tags),
                path,
                count=settings.count,
                seed=keyed_seed(self.recipe.training.seed, "own answers", number),
                prefixes=settings.prefixes,
                maker=f"{self.recipe.name}, round {number}",
                decoding=settings.decoding,
            )
        if dist.is_initialized():
            dist.barrier()
        examples = ExampleDataset(
            (SourceConfig(path=str(path)),), "self_samples", aspect=data.aspect, max_skipped=data.max_skipped
        )
        self.policy.prepare([sample for index in range(len(examples)) for sample in examples[index].samples], cache_folder())
        return examples


@dataclass
class RefreshedSteps:
    """Windows whose data are another every ``every`` steps: made when the first of them is asked for, after the step before
    it was taken. ``steps_of(r)`` gives the steps over the data of round r."""

    steps_of: Callable[[int], Steps]
    every: int

    def loader(self, first_step: int, last_step: int, workers: int, prefetch: int) -> Iterator[Window]:
        """Yield the windows of steps ``first_step`` to ``last_step - 1``; workers read ahead within a round."""
        while first_step < last_step:
            number = first_step // self.every
            end = min(last_step, (number + 1) * self.every)
            yield from self.steps_of(number).loader(first_step, end, workers, prefetch)
            first_step = end
