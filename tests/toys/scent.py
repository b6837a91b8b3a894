"""A modality that exists only in tests: ``SCENT``, one byte that says how long the payload is, the payload."""

from __future__ import annotations

import html
from typing import Any, ClassVar

from polyalign.errors import MediaError
from polyalign.records.modality import Modality

HEADS = {b"SCENT": "scent/raw", b"STINK": "scent/foul"}


def scent(payload: bytes, head: bytes = b"SCENT") -> bytes:
    return head + bytes([len(payload)]) + payload


class Scent(Modality):
    name: ClassVar[str] = "scent"

    def sniff(self, data: bytes) -> str | None:
        return HEADS.get(data[:5])

    def decode(self, data: bytes) -> bytes:
        stated, found = data[5], len(data) - 6
        if found != stated:
            raise MediaError(f"truncated: {found} of {stated} bytes")
        return data[6:]

    def encode(self, medium: Any, mime: str) -> bytes:
        return scent(medium)

    def cost(self, data: bytes) -> int:
        return data[5]

    def preview_html(self, data: bytes, mime: str) -> str:
        return f'<em class="scent">{html.escape(self.decode(data).decode())}</em>'
