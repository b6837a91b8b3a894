"""Short speech as a code per 32 ms: an autoencoder over log-magnitude spectra with a codebook in the middle.

Codes keep no phase, so a waveform is found that has the decoded magnitudes (Griffin-Lim).
"""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from polyalign.errors import MediaError
from polyalign.plugins.registry import registry
from polyalign_any_to_any.media.base import Codebook, MediaTokenizer

RATE, WINDOW, HOP = 8000, 256, 128
BINS = WINDOW // 2 + 1
FLOOR = 1e-3  # magnitudes below it (-60 dB of full scale) count as silence
CENTRE, SPREAD = -5.0, 2.0  # of log spectra, about; the network sees them without
LOUDNESS = 0.1  # root mean square that every clip is brought to


class SpeechCodec(nn.Module):
    """Log spectra ``[N, BINS, F]`` to latents ``[N, F/2, D]`` and back."""

    def __init__(self, codes: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(BINS, width, 3, padding=1), nn.SiLU(), nn.Conv1d(width, width, 4, 2, 1), nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1), nn.SiLU(), nn.Conv1d(width, latent, 1),
        )  # fmt: skip
        self.codebook = Codebook(codes, latent)
        self.decoder = nn.Sequential(
            nn.Conv1d(latent, width, 3, padding=1), nn.SiLU(), nn.Conv1d(width, width, 3, padding=1), nn.SiLU(),
            nn.ConvTranspose1d(width, width, 4, 2, 1), nn.SiLU(), nn.Conv1d(width, BINS, 3, padding=1),
        )  # fmt: skip

    def latents(self, spectra: Tensor) -> Tensor:
        return self.encoder((spectra - CENTRE) / SPREAD).movedim(1, -1)  # type: ignore[no-any-return]

    def spoken(self, quantised: Tensor) -> Tensor:
        """Return log spectra of latents ``[N, F/2, D]``."""
        return self.decoder(quantised.movedim(-1, 1)) * SPREAD + CENTRE  # type: ignore[no-any-return]


class SpeechTokenizer(MediaTokenizer):
    """Clips of up to ``longest`` x 32 ms, resampled to 8 kHz and brought to one loudness."""

    kind: ClassVar[str] = "vq-speech"
    modality = "audio"

    def __init__(self, codes: int = 256, width: int = 128, latent: int = 16, longest: int = 40) -> None:
        self.codes, self.width, self.latent, self.longest = codes, width, latent, longest
        self.length = None
        self.codec = SpeechCodec(codes, width, latent).eval().requires_grad_(False)

    @property
    def settings(self) -> dict[str, Any]:
        return {"codes": self.codes, "width": self.width, "latent": self.latent, "longest": self.longest}

    @property
    def network(self) -> nn.Module:
        return self.codec

    @torch.no_grad()
    def encode(self, medium: Any) -> list[int]:
        spectra = log_spectra(medium)
        codes: list[int] = self.codec.codebook.nearest(self.codec.latents(spectra[None])).flatten().tolist()
        if len(codes) > self.longest:
            raise MediaError(
                f"a clip of {medium.duration:.2f} s takes {len(codes)} codes, and this tokenizer writes at most {self.longest} "
                f"({self.longest * 2 * HOP / RATE:.2f} s); cut it, or leave the record out"
            )
        return codes

    @torch.no_grad()
    def decode(self, codes: Sequence[int]) -> Any:
        quantised = self.codec.codebook.vectors[torch.tensor(codes, dtype=torch.long)][None]
        magnitudes = (self.codec.spoken(quantised)[0].exp() - FLOOR).clamp(min=0)
        return clip_of(waveform(magnitudes).numpy())


def clip_of(samples: np.ndarray, rate: int = RATE) -> Any:
    """Return what the installed codec of sound decodes to: samples ``[S]`` reach it as a WAV file."""
    return registry().get("modalities", "audio").load()().decode(wav_of(samples, rate))


def wav_of(samples: np.ndarray, rate: int = RATE) -> bytes:
    """Return a WAV file of samples ``[S]``, full scale 1."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def log_spectra(clip: Any) -> Tensor:
    """Return the log magnitudes ``[BINS, F]`` of a clip, an even number of frames."""
    samples = clip.at(RATE).samples
    loud = float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0
    samples = samples * (LOUDNESS / max(loud, 1e-6))
    frames = max(2, -(-len(samples) // HOP))
    frames += frames % 2
    padded = torch.zeros((frames - 1) * HOP)
    kept = torch.from_numpy(np.ascontiguousarray(samples[: len(padded)]))
    padded[: len(kept)] = kept
    return torch.log(FLOOR + _transform(padded).abs())


def waveform(magnitudes: Tensor, rounds: int = 48, momentum: float = 0.99) -> Tensor:
    """Return samples whose spectra have these magnitudes ``[BINS, F]``. Source: the fast Griffin-Lim algorithm, Perraudin,
    Balazs and Sondergaard 2013. Starts from a fixed random phase, so that equal codes sound equal."""
    noise = torch.rand(magnitudes.shape, generator=torch.Generator().manual_seed(0))
    phase = torch.polar(torch.ones_like(noise), 2 * torch.pi * noise)
    last = torch.zeros_like(phase)
    for _ in range(rounds):
        found = _transform(_inverse(magnitudes * phase))
        phase = found + momentum * (found - last)
        phase = phase / phase.abs().clamp(min=1e-8)
        last = found
    return _inverse(magnitudes * phase)


def _transform(samples: Tensor) -> Tensor:
    window = torch.hann_window(WINDOW)
    return torch.stft(samples, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True) / window.sum()


def _inverse(spectra: Tensor) -> Tensor:
    window = torch.hann_window(WINDOW)
    return torch.istft(spectra * window.sum(), WINDOW, HOP, window=window, length=(spectra.shape[1] - 1) * HOP)
