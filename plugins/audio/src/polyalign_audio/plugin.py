"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import ModalitySpec


@hookimpl
def polyalign_modalities() -> list[ModalitySpec]:
    return [
        ModalitySpec(
            name="audio",
            summary="Sound: WAV, FLAC, Ogg (Vorbis, Opus), MP3",
            target="polyalign_audio.modality:AudioModality",
            mimes=("audio/flac", "audio/wav", "audio/ogg", "audio/mpeg"),
            requires=("soundfile",),
        )
    ]
