"""What every video reward reads from what it is given: the clip."""

from __future__ import annotations

from polyalign.errors import MediaError
from polyalign.rewards.base import Judged
from polyalign_video.clip import Clip


def clip_of(item: Judged) -> Clip:
    """Return the output. Raises `MediaError` for an output that is no `Clip`."""
    if not isinstance(item.output, Clip):
        raise MediaError(f"the response is a {type(item.output).__name__}; expected a clip (polyalign_video.clip.Clip)")
    return item.output
