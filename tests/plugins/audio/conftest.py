"""What the tests of policies that listen share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polyalign.records.samples import MediaSource, Prompt, Sample
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.records.store import MemoryMedia
from polyalign.records.views import VIEWS
from polyalign_audio import fixture
from polyalign_audio.modality import AudioModality, Clip


@pytest.fixture
def samples() -> list[Sample]:
    """Two samples about each of four clips."""
    records, media = fixture.records()
    return [sample for record in records[:4] for example in VIEWS["pairs"](record, media) for sample in example.samples]


@pytest.fixture
def asked() -> Callable[..., Prompt]:
    """Make a prompt of clips and texts."""
    store, codec = MemoryMedia(), AudioModality()

    def make(*parts: Clip | str, media: MediaSource | None = store) -> Prompt:
        kept = tuple(
            TextPart(text=part)
            if isinstance(part, str)
            else MediaPart(media=store.add(codec.encode(part, "audio/wav"), "audio", "audio/wav"))
            for part in parts
        )
        return Prompt.of((Message(role="user", parts=kept),), media)

    return make


class Passes:
    """Counts clips that go through a tower."""

    def __init__(self, tower: Any) -> None:
        self.clips = 0
        tower.conv1.register_forward_hook(lambda _, inputs, __: setattr(self, "clips", self.clips + len(inputs[0])))


@pytest.fixture
def passes() -> type[Passes]:
    return Passes


@pytest.fixture
def own_log_probs() -> Callable[..., float]:
    """Return the sum of log-probabilities that a model's logits ``[L, V]`` give the last tokens of ``ids``."""

    def summed(logits: torch.Tensor, ids: list[int], scored: int) -> float:
        log_probs = torch.log_softmax(logits.float(), -1)
        return float(sum(log_probs[place - 1, ids[place]] for place in range(len(ids) - scored, len(ids))))

    return summed
