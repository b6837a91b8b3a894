"""The log-mel spectrogram that HiFi-GAN vocoders, and so AudioLDM's VAE, read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = 1e-5  # magnitudes below are taken for this


def log_mel(samples: Tensor, rate: int, hop: int, mels: int) -> Tensor:
    """Return ``[frames, mels]`` of a clip ``[S]``, one frame per ``hop`` samples: natural logarithms of Slaney mel bands of
    magnitudes, with a window of 6.4 frames (1024 samples at AudioLDM2's 160). Source: HiFi-GAN, arXiv 2010.05646, code."""
    from transformers.audio_utils import mel_filter_bank

    window = 2 ** round(math.log2(6.4 * hop))
    bank = torch.from_numpy(mel_filter_bank(window // 2 + 1, mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"))
    side = (window - hop) // 2
    padded = torch.nn.functional.pad(samples.float()[None, None], (side, side), mode="reflect")[0, 0]
    spectrum = torch.stft(padded, window, hop, window=torch.hann_window(window), center=False, return_complex=True)
    magnitudes = (spectrum.abs().square() + 1e-9).sqrt()  # [window / 2 + 1, frames]
    return (magnitudes.T @ bank.float()).clamp(min=LEAST).log()
