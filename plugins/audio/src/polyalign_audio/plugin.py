"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import ModalitySpec, PolicySpec


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


@hookimpl
def polyalign_policies() -> list[PolicySpec]:
    return [
        PolicySpec(
            name="text-to-audio-tokens",
            summary="MusicGen-like models: text to the codes of a neural codec, several codebooks with a delay",
            target="polyalign_audio.codec_tokens:build",
            config="polyalign_audio.generation_config:CodecTokensConfig",
            requires=("torch", "transformers", "soundfile"),
            family="tokens",
            inputs=("text",),
            outputs=("audio",),
            provides=("log_probs", "entropy", "mean_logit", "log_sum_squares", "hidden", "prompt_hidden", "states"),
            switches={"values": "value_head"},
            fixture="polyalign_audio.generation_fixture:codec_fixture",
        ),
    ]
