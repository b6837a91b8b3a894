"""A synthesizer: records in, new records out, and an account of what was left out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from polyalign.records.samples import MediaSource
from polyalign.records.schema import Record
from polyalign.synthesis.stages import Stages

Found = tuple[Record, MediaSource]


@dataclass
class Synthesized:
    """New records, each with what opens its media, and how much was left out for which reason."""

    records: list[Found] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


class Synthesizer(ABC):
    """Makes records of records. All costly work goes through ``stages``, so that a killed run repeats none of it."""

    @abstractmethod
    def synthesize(self, found: Sequence[Found], stages: Stages) -> Synthesized:
        """Return the new records in the order of those they were made from. New media lie in ``stages.media``."""
