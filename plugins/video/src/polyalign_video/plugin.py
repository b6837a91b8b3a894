"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import ModalitySpec


@hookimpl
def polyalign_modalities() -> list[ModalitySpec]:
    return [
        ModalitySpec(
            name="video",
            summary="Clips: animated WebP, MP4, WebM, Matroska, AVI, QuickTime, animated GIF",
            target="polyalign_video.modality:VideoModality",
            mimes=(
                "image/webp", "video/mp4", "video/webm", "video/x-matroska", "video/x-msvideo", "video/quicktime", "image/gif",
            ),
            requires=("av", "PIL"),
        )
    ]  # fmt: skip
