"""The codec of walks."""

from __future__ import annotations

import html
import json
import math
from typing import Any

from polyalign.errors import MediaError
from polyalign.records.modality import Modality

MIME = "application/x-walk+json"
LONGEST = 10_000


class Walk(Modality):
    """A walk is ``{"walk": [numbers]}``; decoded it is a list of floats."""

    name = "walk"

    def sniff(self, data: bytes) -> str | None:
        return MIME if data.lstrip().startswith(b'{"walk"') else None

    def decode(self, data: bytes) -> list[float]:
        try:
            walk = [float(number) for number in json.loads(data)["walk"]]
        except (ValueError, TypeError, KeyError) as error:
            raise MediaError(f'not a walk: expected {{"walk": [numbers]}} ({error})') from error
        if not walk or len(walk) > LONGEST or not all(map(math.isfinite, walk)):
            raise MediaError(f"a walk has 1 to {LONGEST} finite numbers; found {len(walk)}")
        return walk

    def encode(self, medium: Any, mime: str) -> bytes:
        return json.dumps({"walk": [round(float(number), 6) for number in medium]}).encode()

    def cost(self, data: bytes) -> int:
        return len(self.decode(data))

    def preview_html(self, data: bytes, mime: str) -> str:
        """Return the walk as a line drawing."""
        walk = self.decode(data)
        low, high = min(walk), max(walk)
        points = " ".join(f"{10 * i},{40 - 40 * (y - low) / ((high - low) or 1):.1f}" for i, y in enumerate(walk))
        title = html.escape(", ".join(f"{number:g}" for number in walk))
        width = 10 * max(len(walk) - 1, 1)
        return (
            f'<svg width="{width}" height="40" viewBox="0 0 {width} 40"><title>{title}</title>'
            f'<polyline points="{points}" fill="none" stroke="black"/></svg>'
        )
