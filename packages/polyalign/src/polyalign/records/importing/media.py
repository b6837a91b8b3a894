"""Media of a foreign data set, in whatever form a row holds them, into the new data set's own store."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polyalign.errors import RecordError
from polyalign.records.modality import Modality
from polyalign.records.schema import MediaPart
from polyalign.records.store import MediaStore
from polyalign.records.trl import RowError


class IncomingMedia:
    """Stores media for an importer. ``root``: the folder that paths in rows start from."""

    def __init__(self, root: Path, store: MediaStore, modalities: Mapping[str, Callable[[], Modality]]) -> None:
        self.root, self.store, self.modalities = root.resolve(), store, modalities
        self._codecs: dict[str, Modality] = {}

    def part(self, value: Any, modality: str, field: str) -> MediaPart:
        """Store one medium and return the part that points at it.

        ``value``: bytes, a path below ``root``, a ``data:`` URL, or {"bytes", "path"} as the `datasets` library keeps media.
        Raises `RowError` naming ``field`` if it is missing, elsewhere, or of another kind; `RecordError` if no installed plugin
        knows the modality.
        """
        data = self._bytes(value, modality, field)
        mime = self._codec(modality).sniff(data)
        if mime is None:
            raise RowError(field, "wrong format", f"expected {modality} bytes; found {len(data)} bytes starting {data[:12]!r}")
        return MediaPart(media=self.store.add(data, modality, mime))

    def _codec(self, modality: str) -> Modality:
        if modality not in self.modalities:
            raise RecordError(
                f"this data set holds {modality}, and no installed plugin reads that; install polyalign-{modality} "
                f"(installed: {', '.join(self.modalities) or 'none'})"
            )
        if modality not in self._codecs:
            self._codecs[modality] = self.modalities[modality]()
        return self._codecs[modality]

    def _bytes(self, value: Any, modality: str, field: str) -> bytes:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes | bytearray):
            return bytes(value)
        if not isinstance(value, str) or not value:
            raise RowError(field, "no medium", f"expected {modality}: bytes, a path or a data: URL; found {value!r:.60}")
        if value.startswith("data:"):
            try:
                return base64.b64decode(value.partition(",")[2], validate=True)
            except binascii.Error as error:
                raise RowError(field, "wrong format", f"the data: URL is not base64 ({error})") from error
        if "://" in value:
            raise RowError(field, "not local", f"{value!r:.80} is a URL; download the media, and write their paths instead")
        path = (self.root / value).resolve()
        if not path.is_relative_to(self.root):
            raise RowError(field, "outside", f"{value!r} lies outside {self.root.name!r}; name the folder with --media")
        if not path.is_file():
            raise RowError(
                field, "no such file", f"{value!r} is not in {self.root.name!r}; unpack it there, or name its folder with --media"
            )
        return path.read_bytes()
