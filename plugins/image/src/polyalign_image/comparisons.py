"""The pictures that a data set compares: what judges are fitted on and measured by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from polyalign.errors import RecordError
from polyalign.records.dataset import ExampleDataset
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, MediaRef
from polyalign.training.config import SourceConfig
from polyalign_image.judged import caption_of
from polyalign_image.modality import ImageModality


@dataclass(frozen=True)
class Comparison:
    """Two pictures made for one caption, and which was preferred."""

    caption: str
    better: Image
    worse: Image


def compared_pictures(data: str, split: str, tags: Sequence[str] = ()) -> list[Comparison]:
    """Return the strict preferences between two pictures, each pair of pictures once.

    Pictures that are preferred in one place and rejected in another tell nothing of the two populations: comparisons with
    them are left out. Raises `RecordError` if nothing is left.
    """
    examples = ExampleDataset([SourceConfig(path=data, split=split)], "pairs", tags=tags)
    found: dict[tuple[str, str], tuple[str, Sample, MediaRef, Sample, MediaRef]] = {}
    for index in range(len(examples)):
        example = examples[index]
        for edge in example.edges:
            better, worse = example.samples[edge.better], example.samples[edge.worse]
            first, second = _picture(better), _picture(worse)
            if edge.contrast == "response" and first and second and first.sha256 != second.sha256:
                found[first.sha256, second.sha256] = (caption_of(better.prompt), better, first, worse, second)
    both = {first for first, _ in found} & {second for _, second in found}
    codec = ImageModality()
    comparisons = [
        Comparison(caption, codec.decode(_read(better, first)), codec.decode(_read(worse, second)))
        for key, (caption, better, first, worse, second) in found.items()
        if both.isdisjoint(key)
    ]
    if not comparisons:
        raise RecordError(
            f"{data} (split {split!r}) holds no two pictures of which one is preferred"
            + (f" throughout: {len(both)} are preferred here and rejected there" if both else "")
            + "; a judge of pictures needs records that compare pictures, in both of its splits"
        )
    return comparisons


def _picture(sample: Sample) -> MediaRef | None:
    refs = [part.media for part in sample.response if isinstance(part, MediaPart) and part.media.modality == ImageModality.name]
    return refs[0] if refs else None


def _read(sample: Sample, ref: MediaRef) -> bytes:
    assert sample.media is not None, "ExampleDataset gives every sample its media source"
    return sample.media.read(ref)
