"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import (
    TOKEN_POLICY_PROVIDES,
    DatasetSpec,
    EncoderSpec,
    ModalitySpec,
    PolicySpec,
    RecipeSpec,
    RewardSpec,
)


@hookimpl
def polyalign_modalities() -> list[ModalitySpec]:
    return [
        ModalitySpec(
            name="audio",
            summary="Sound: WAV, FLAC, Ogg (Vorbis, Opus), MP3",
            target="polyalign_audio.modality:AudioModality",
            mimes=("audio/flac", "audio/wav", "audio/ogg", "audio/mpeg"),
            media_kind="polyalign_audio.clips:Clips",
            requires=("soundfile",),
        )
    ]


@hookimpl
def polyalign_policies() -> list[PolicySpec]:
    return [
        PolicySpec(
            name="whisper",
            summary="Whisper speech recognisers: a clip to its transcript, parts frozen, in full or by LoRA",
            target="polyalign_audio.whisper:build",
            config="polyalign_audio.config:WhisperConfig",
            requires=("torch", "transformers", "peft", "soundfile"),
            family="tokens",
            inputs=("text", "audio"),
            outputs=("text",),
            provides=TOKEN_POLICY_PROVIDES,
            fixture="polyalign_audio.fixture:whisper_fixture",
        ),
        PolicySpec(
            name="audio-language",
            summary="transformers models that read clips among text (Qwen2-Audio class): text and sound to text",
            target="polyalign_audio.audio_language:build",
            config="polyalign_audio.config:AudioLanguageConfig",
            requires=("torch", "transformers", "peft", "soundfile"),
            family="tokens",
            inputs=("text", "audio"),
            outputs=("text",),
            provides=TOKEN_POLICY_PROVIDES,
            fixture="polyalign_audio.fixture:language_fixture",
        ),
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
        PolicySpec(
            name="text-to-audio",
            summary="diffusers text-to-audio pipelines: Stable Audio (waveform latents), AudioLDM2 (mel latents)",
            target="polyalign_audio.text_to_audio:build",
            config="polyalign_audio.generation_config:TextToAudioConfig",
            requires=("diffusers", "soundfile"),
            family="denoising",
            inputs=("text",),
            outputs=("audio",),
            provides=("log_probs", "predictions"),
            fixture="polyalign_audio.pipeline_fixture:fixtures",
        ),
    ]


@hookimpl
def polyalign_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="clap",
            summary="CLAP embeddings of sound and text, transformers layout",
            target="polyalign_audio.clap:ClapEncoder",
            config="polyalign_audio.generation_config:ClapConfig",
            inputs=("audio", "text"),
            requires=("torch", "transformers"),
        )
    ]


@hookimpl
def polyalign_rewards() -> list[RewardSpec]:
    return [
        RewardSpec(
            name="word_accuracy",
            summary="1 less the word error rate, of a transcript or of what a recogniser hears in a clip",
            target="polyalign_audio.word_accuracy:WordAccuracy",
            config="polyalign_audio.config:WordAccuracyConfig",
            inputs=("text", "audio"),
        ),
        RewardSpec(
            name="loudness",
            summary="A clip's root mean square and peak are within limits",
            target="polyalign_audio.clip_rules:Loudness",
            config="polyalign_audio.config:LoudnessConfig",
            inputs=("audio",),
            rule=True,
        ),
        RewardSpec(
            name="pitch",
            summary="A clip's median pitch is within limits",
            target="polyalign_audio.clip_rules:Pitch",
            config="polyalign_audio.config:PitchConfig",
            inputs=("audio",),
            rule=True,
        ),
        RewardSpec(
            name="dnsmos",
            summary="How people would rate speech, 1 to 5: DNSMOS P.835 (pip install 'polyalign-audio[quality]')",
            target="polyalign_audio.dnsmos:DnsMos",
            config="polyalign_audio.generation_config:DnsMosConfig",
            inputs=("audio",),
            requires=("soundfile",),
        ),
        RewardSpec(
            name="clap",
            summary="How well a clip fits its prompt: cosine of CLAP embeddings",
            target="polyalign_audio.clap:ClapScore",
            config="polyalign_audio.generation_config:ClapConfig",
            inputs=("text", "audio"),
            requires=("torch", "transformers"),
        ),
        RewardSpec(
            name="tune_rule",
            summary="Share of the asked words heard in a tune: rising or falling, low or high, slow or fast",
            target="polyalign_audio.tunes:TuneRule",
            config="polyalign_audio.generation_config:TuneRuleConfig",
            inputs=("text", "audio"),
            rule=True,
        ),
    ]


@hookimpl
def polyalign_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(
            name="heard-tunes",
            summary="tunes of a few notes and what each is, right descriptions over those that name the wrong instrument",
            target="polyalign_audio.shipped:heard_tunes",
            licence="CC0-1.0",
        ),
        DatasetSpec(
            name="spoken-emoji",
            summary="names of emoji spoken in twelve voices; preferences by rule for the speed, pitch, voice and words asked for",
            target="polyalign_audio.shipped:spoken_emoji",
            licence="MIT",
        ),
        DatasetSpec(
            name="tune-prompts",
            summary="tunes to ask zoo:tiny-musicgen for, which may rise or fall; no clips",
            target="polyalign_audio.shipped:tune_prompts",
            licence="CC0-1.0",
        ),
    ]


@hookimpl
def polyalign_recipes() -> list[RecipeSpec]:
    summaries = {
        "dpo-listener": "DPO on a tiny Qwen2-Audio that describes tunes, against naming the wrong instrument",
        "dpo-whisper": "DPO on names of emoji: what was said over what Whisper tiny heard; on a laptop CPU",
        "grpo-whisper": "GRPO on names of emoji: Whisper tiny rewarded for the words it gets right; on a laptop CPU",
        "grpo-tunes": "GRPO on a tiny MusicGen: tunes that rise, by a rule that listens for notes",
    }
    return [
        RecipeSpec(name=f"audio/{name}", summary=summary, target=f"polyalign_audio:recipes/{name}.yaml")
        for name, summary in summaries.items()
    ]
