"""Policies whose frozen encoders run once for each distinct response and prompt, before training, into a `FeatureCache`."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from polyalign.errors import TrainingError
from polyalign.policies.base import Batch, Policy
from polyalign.policies.feature_cache import FeatureCache, Features
from polyalign.records.samples import Sample


class PreparedPolicy(Policy):
    """``features`` is what the collator reads. ``encode_batch``: how many go through an encoder at once."""

    encode_batch: ClassVar[int] = 16

    @property
    @abstractmethod
    def features(self) -> FeatureCache:
        """Return where encoded features are kept."""

    @abstractmethod
    def encode_missing(self, samples: Sequence[Sample], progress: Any = None) -> None:
        """Call `encode_each` for all that these samples need."""

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Have the frozen encoders ready inside (on the device, in eval mode). Default: they always are."""
        yield

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Collate; features that `prepare` has not seen are encoded first. Loader workers use ``collator`` and cannot."""
        self.encode_missing(samples)
        return self.collator(samples)

    def prepare(self, samples: Sequence[Sample], cache: Path, progress: Any = None) -> None:
        """Encode what is not yet in ``cache``; a killed run goes on where it stopped. ``progress``: a started
        `rich.progress.Progress` to show bars in; none gives its own on a terminal."""
        self.features.attach(Path(cache) / "features")
        if progress is not None or not sys.stderr.isatty():
            self.encode_missing(samples, progress)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            self.encode_missing(samples, bar)

    def encode_each(
        self,
        samples: Sequence[Sample],
        what: str,
        key_of: Callable[[Sample], str],
        encode: Callable[[Sequence[Sample]], list[Features]],
        progress: Any = None,
    ) -> None:
        """Encode one sample of each key that has no features yet, ``encode_batch`` at a time. ``what``: for bars and errors."""
        missing: dict[str, Sample] = {}
        for sample in samples:
            key = key_of(sample)
            if key not in missing and key not in self.features:
                missing[key] = sample
        if not missing:
            return
        task = progress.add_task(f"encoding {what}", total=len(missing)) if progress is not None else None
        keys = list(missing)
        with self.encoders(), torch.no_grad():
            for start in range(0, len(keys), self.encode_batch):
                chunk = keys[start : start + self.encode_batch]
                encoded = encode([missing[key] for key in chunk])
                for key, entry in zip(chunk, encoded, strict=True):
                    self.features.store(key, entry, f"the {what} of sample {missing[key].id!r}")
                if task is not None:
                    progress.advance(task, len(chunk))


def prepared(features: FeatureCache, key: str, sample: Sample, what: str) -> Features:
    """Return cached features. Raises `TrainingError` naming the sample if `PreparedPolicy.prepare` has not seen it."""
    try:
        return features.load(key)
    except KeyError:
        raise TrainingError(
            f"the {what} of sample {sample.id!r} are not in the cache ({features.folder or 'memory only'}); "
            "call policy.prepare(samples, folder) with every sample before training"
        ) from None
