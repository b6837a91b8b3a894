"""Rules about how a clip sounds that need no weights: its loudness and its pitch. (Its length: core's ``duration``.)"""

from __future__ import annotations

from typing import Any

import numpy as np

from polyalign.rewards.base import Judged
from polyalign.rewards.rules.base import Verifier, within
from polyalign_audio.config import LoudnessConfig, PitchConfig
from polyalign_audio.judged_clips import clip_of
from polyalign_audio.modality import Clip

LOWEST, HIGHEST = 50.0, 600.0  # Hz: where pitch is looked for
WINDOW, STEP = 0.04, 0.01  # seconds
VOICED = 0.5  # least autocorrelation of a window that has a pitch, as a share of its energy
HEARD = 0.1  # least root mean square of a window that counts, as a share of the loudest window's


class Loudness(Verifier):
    """1 if the root mean square lies within the limits and no sample is past the peak, else 0."""

    name = "loudness"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config or LoudnessConfig())

    def verify(self, item: Judged) -> float:
        clip = clip_of(item, self.name)
        return within(clip.loudness, self.config.minimum, self.config.maximum) and clip.peak <= self.config.peak


class Pitch(Verifier):
    """1 if the median pitch lies within the limits, else 0; 0 for a clip without pitch, such as noise and silence."""

    name = "pitch"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config or PitchConfig())

    def verify(self, item: Judged) -> float:
        found = median_pitch(clip_of(item, self.name))
        return found is not None and within(found, self.config.minimum, self.config.maximum)


def median_pitch(clip: Clip) -> float | None:
    """Return the median over windows of the pitch in Hz, from 50 to 600; None where no window has one.

    Of each window the first peak of its autocorrelation that comes near the greatest: later ones are multiples of the period.
    """
    size, step = round(WINDOW * clip.rate), max(1, round(STEP * clip.rate))
    shortest, longest = int(clip.rate / HIGHEST), min(int(clip.rate / LOWEST), size - 2)
    if len(clip.samples) < size or longest <= shortest:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(clip.samples.astype(np.float64), size)[::step]
    windows = windows - windows.mean(1, keepdims=True)
    energy = np.square(windows).sum(1)
    found = []
    for window, power in zip(windows, energy):
        if power <= HEARD**2 * energy.max() or power == 0:
            continue
        spectrum = np.fft.rfft(window, 2 * size)
        correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:size] / power
        correlation *= size / np.arange(size, 0, -1)  # fewer samples overlap at longer lags
        lags = correlation[shortest:longest]
        if lags.max() < VOICED:
            continue
        inner = lags[1:-1]
        peaks = 1 + np.flatnonzero((inner >= lags[:-2]) & (inner >= lags[2:]) & (inner >= 0.9 * lags.max()))
        if len(peaks):
            found.append(clip.rate / (shortest + peaks[0]))
    return float(np.median(found)) if found else None
