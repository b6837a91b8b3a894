"""One kind of media: how to recognise, decode, budget, validate and show it. Plugins subclass `Modality`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from polyalign.plugins.registry import registry
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaRef


class Modality(ABC):
    """Codec of one media kind."""

    name: ClassVar[str]

    @abstractmethod
    def sniff(self, data: bytes) -> str | None:
        """Return the mime type if these bytes are of this modality, else None."""

    @abstractmethod
    def decode(self, data: bytes) -> Any:
        """Return the decoded medium. Raises `MediaError` if it is damaged or past the size limit."""

    @abstractmethod
    def encode(self, medium: Any, mime: str) -> bytes: ...

    @abstractmethod
    def cost(self, data: bytes) -> int:
        """Return the size that counts against a budget (pixels, samples, frames) without a full decode."""

    @abstractmethod
    def preview_html(self, data: bytes, mime: str) -> str:
        """Return a self-contained HTML fragment that shows the medium."""


def decoded(ref: MediaRef, source: MediaSource) -> Any:
    """Return the medium that ``ref`` names, as the codec of its modality decodes it."""
    codec: Modality = registry().get("modalities", ref.modality).load()()
    return codec.decode(source.read(ref))
