"""What a transformers processor has to be told about one kind of media. Plugins subclass `MediaKind` beside their codec."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from polyalign.plugins.registry import registry
from polyalign.plugins.specs import ModalitySpec, load_attribute
from polyalign.policies.completion_mask import Medium


@dataclass(frozen=True, eq=False)
class PlacedMedium(Medium):
    """``block``: the ids that stand for it, placeholders and what the processor puts around them. ``size``: as its kind says."""

    block: tuple[int, ...] = ()
    size: Hashable = None


class MediaKind(ABC):
    """One kind of media as processors take it.

    ``modality``: as records and transformers name it. ``plural`` and ``shrink``: for messages, the latter a way to make the
    medium take fewer tokens. ``placeholder``: the text that stands for a medium in a prompt. ``media_id``: the id of the tokens
    that features take the place of, from the model's configuration (some processors name the token in front of them instead).
    ``settings``: what the features depend on besides the medium and the processor, as text.
    """

    modality: ClassVar[str]
    plural: ClassVar[str]
    shrink: ClassVar[str] = ""
    settings: str = ""

    def __init__(self, placeholder: str, media_id: int) -> None:
        self.placeholder, self.media_id = placeholder, media_id

    @abstractmethod
    def size(self, data: bytes) -> Hashable:
        """Return what the ids that stand for a medium depend on, read from the header."""

    @abstractmethod
    def open(self, data: bytes) -> Any:
        """Return the medium as the processor takes it."""

    @abstractmethod
    def blank(self, size: Any) -> Any:
        """Return some medium of this size."""

    @abstractmethod
    def probe(self, number: int) -> Any:
        """Return made-up medium 0 or 1, of unequal sizes."""

    @abstractmethod
    def arguments(self, media: Sequence[Any]) -> dict[str, Any]:
        """Return the processor's keyword arguments for the media of one text."""


def installed_kind(modality: str, processor: Any, config: Any, **settings: Any) -> MediaKind | None:
    """Return the kind of this modality; None where the processor, the model (its ``config``) or the installed plugins do not
    know it. ``settings``: what its constructor takes besides."""
    specs = [entry.spec for entry in registry().entries("modalities") if entry.spec.name == modality]
    placeholder, media_id = getattr(processor, f"{modality}_token", None), getattr(config, f"{modality}_token_id", None)
    if not specs or placeholder is None or media_id is None:
        return None
    (spec,) = specs
    if not isinstance(spec, ModalitySpec) or spec.media_kind is None:
        return None
    made: MediaKind = load_attribute(spec.media_kind, modality)(str(placeholder), media_id, **settings)
    return made
