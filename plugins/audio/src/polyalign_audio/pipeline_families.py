"""Families of text-to-audio pipelines: how text is encoded, how the denoiser is called, what lies between sound and latents."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.errors import ConfigError
from polyalign.policies.pipelines.families import PipelineFamily
from polyalign_audio.mel import log_mel

TEXT_TOKENS = 64  # of AudioLDM2's T5, unless policy.max_sequence_length says otherwise


class AudioFamily(PipelineFamily):
    """A family of clips of ``seconds`` (the policy sets it) at ``rate`` Hz."""

    result = "audios"
    rate: int
    seconds: float

    @classmethod
    @abstractmethod
    def seconds_of(cls, pipeline: Any, seconds: float | None) -> float:
        """Return how long clips last, which ``seconds`` asks for; none: what the pipeline was made for. Raises `ConfigError`."""

    @classmethod
    @abstractmethod
    def sizes(cls, pipeline: Any, seconds: float) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return (what the pipeline's own call is told of the length, the shape of the latents)."""

    @abstractmethod
    def to_vae(self, samples: Tensor) -> Tensor:
        """Return a clip ``[S]`` as the VAE reads it, ``[C, ...]``."""

    @abstractmethod
    def to_sound(self, decoded: Tensor) -> Tensor:
        """Return what the VAE made as sound ``[N, S]``; keeps the gradient."""


class StableAudio(AudioFamily):
    """A transformer on the latents of a waveform VAE, told the seconds that a clip begins and ends at (arXiv 2407.14358).

    Latents always last as long as the model can; a shorter clip has silence behind it, and responses are cut to ``seconds``.
    Guidance pushes away from the empty text; the pipeline's own call, given no negative prompt, takes zeros in its place.
    """

    pipelines = ("StableAudioPipeline",)
    denoiser = "transformer"
    text_parts = ("text_encoder", "projection_model")

    def __init__(self, pipeline: Any) -> None:
        self.projection: nn.Module = pipeline.projection_model
        self.rotary_dim: int = pipeline.rotary_embed_dim
        self.rate, self.channels = pipeline.vae.config.sampling_rate, pipeline.vae.config.audio_channels
        self.length: int = pipeline.transformer.config.sample_size * pipeline.vae.hop_length

    @classmethod
    def seconds_of(cls, pipeline: Any, seconds: float | None) -> float:
        most: float = pipeline.transformer.config.sample_size * pipeline.vae.hop_length / pipeline.vae.config.sampling_rate
        if seconds is not None and seconds > most:
            raise ConfigError(f"policy.seconds={seconds:g}, but this model makes clips of {most:g} s at most")
        return most if seconds is None else seconds

    @classmethod
    def sizes(cls, pipeline: Any, seconds: float) -> tuple[dict[str, Any], tuple[int, ...]]:
        config = pipeline.transformer.config
        return {"audio_end_in_s": seconds}, (config.in_channels, config.sample_size)

    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        """Return T5's states and their mask; the projection follows in `denoise`, as the pipeline's own call applies it."""
        limit = length or pipeline.tokenizer.model_max_length
        read = pipeline.tokenizer(captions, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").to(
            device
        )
        states = pipeline.text_encoder(read.input_ids, attention_mask=read.attention_mask)[0]
        return {"prompt_embeds": states, "attention_mask": read.attention_mask}

    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        projection = self.projection.to(noised.device)
        mask = conditions["attention_mask"][..., None].to(noised.dtype)
        text = projection(text_hidden_states=conditions["prompt_embeds"]).text_hidden_states * mask
        start = torch.zeros(len(noised), device=noised.device)
        told = projection(start_seconds=start, end_seconds=start + self.seconds)
        times = [told.seconds_start_hidden_states.to(noised.dtype), told.seconds_end_hidden_states.to(noised.dtype)]
        rotary = get_1d_rotary_pos_embed(self.rotary_dim, noised.shape[2] + 1, use_real=True, repeat_interleave_real=False)
        return network(  # type: ignore[no-any-return]
            noised,
            timesteps,
            encoder_hidden_states=torch.cat([text, *times], 1),
            global_hidden_states=torch.cat(times, 2),
            rotary_embedding=tuple(part.to(noised.device) for part in rotary),
            return_dict=False,
        )[0]

    def to_vae(self, samples: Tensor) -> Tensor:
        return nn.functional.pad(samples[: self.length], (0, max(0, self.length - len(samples)))).expand(self.channels, -1)

    def to_sound(self, decoded: Tensor) -> Tensor:
        return decoded.mean(1)[:, : round(self.seconds * self.rate)]


class AudioLDM2(AudioFamily):
    """A UNet on the latents of a mel VAE, with T5, CLAP and the continuation that a GPT-2 makes of both (arXiv 2308.05734)."""

    pipelines = ("AudioLDM2Pipeline",)
    denoiser = "unet"
    text_parts = ("text_encoder", "language_model", "projection_model")

    def __init__(self, pipeline: Any) -> None:
        self.vocoder: nn.Module = pipeline.vocoder
        self.rate, self.hop, self.mels = mel_layout(pipeline)

    @classmethod
    def seconds_of(cls, pipeline: Any, seconds: float | None) -> float:
        rate, hop, _ = mel_layout(pipeline)
        per_latent = pipeline.vae_scale_factor * hop / rate
        rows = pipeline.unet.config.sample_size if seconds is None else max(1, round(seconds / per_latent))
        return float(rows * per_latent)

    @classmethod
    def sizes(cls, pipeline: Any, seconds: float) -> tuple[dict[str, Any], tuple[int, ...]]:
        rate, hop, mels = mel_layout(pipeline)
        rows = round(seconds * rate / hop / pipeline.vae_scale_factor)
        shape = (pipeline.unet.config.in_channels, rows, mels // pipeline.vae_scale_factor)
        return {"audio_length_in_s": seconds + 0.5 * hop / rate}, shape  # half a frame more: the call rounds down

    def encode_text(self, pipeline: Any, captions: list[str], device: torch.device, length: int | None) -> dict[str, Tensor]:
        """Return T5's states with their mask, padded to one length, and GPT-2's. A caption at a time: padding to the longest of
        a batch would let its neighbours have a say."""
        limit = length or TEXT_TOKENS
        rows = []
        for caption in captions:
            states, mask, made = pipeline.encode_prompt([caption], device, 1, False)
            states, mask = states[:, :limit], mask[:, :limit]
            missing = limit - states.shape[1]
            rows.append((nn.functional.pad(states, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing)), made))
        names = ("prompt_embeds", "attention_mask", "generated_prompt_embeds")
        return {name: torch.cat(parts) for name, parts in zip(names, zip(*rows))}

    def denoise(self, network: Any, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        return network(  # type: ignore[no-any-return]
            noised,
            timesteps,
            encoder_hidden_states=conditions["generated_prompt_embeds"],
            encoder_hidden_states_1=conditions["prompt_embeds"],
            encoder_attention_mask_1=conditions["attention_mask"],
            return_dict=False,
        )[0]

    def to_vae(self, samples: Tensor) -> Tensor:
        length = round(self.seconds * self.rate / self.hop) * self.hop
        whole = nn.functional.pad(samples[:length], (0, max(0, length - len(samples))))
        return log_mel(whole, self.rate, self.hop, self.mels)[None]

    def to_sound(self, decoded: Tensor) -> Tensor:
        return self.vocoder.to(decoded.device)(decoded[:, 0].float())[:, : round(self.seconds * self.rate)]


def mel_layout(pipeline: Any) -> tuple[int, int, int]:
    """Return (rate in Hz, samples per frame, mel bands) of what the vocoder reads."""
    config = pipeline.vocoder.config
    hop = 1
    for factor in config.upsample_rates:
        hop *= factor
    return config.sampling_rate, hop, config.model_in_dim


FAMILIES: tuple[type[AudioFamily], ...] = (StableAudio, AudioLDM2)
