"""The `tune_rule` reward: does a tune rise or fall, lie low or high, and go slowly or fast, as asked? Heard from its samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, asked
from polyalign.rewards.rules.base import Verifier
from polyalign_audio.generation_config import TuneRuleConfig
from polyalign_audio.judged_clips import clip_of
from polyalign_audio.modality import Clip

WINDOW = 0.04  # seconds that a pitch is read from
PITCHES = (80.0, 800.0)  # Hz, the least and the greatest that is looked for
SILENT = 0.02  # root mean square of a window without a note
FINE = 32000  # Hz, the least rate at which lags are told apart
PERIODIC = 0.7  # autocorrelation, of at most 1, of a window with a pitch
SAME = 0.04  # relative difference of pitches within one note


@dataclass(frozen=True)
class Note:
    """``start`` in seconds; ``pitch`` in Hz, the median of its windows."""

    start: float
    pitch: float


def pitch_of(window: np.ndarray, rate: int) -> float | None:
    """Return the pitch of a window ``[S]`` in Hz, or None where there is none: the first lag at which it is nearly as like itself
    as it ever is. A low rate is made finer first, since overtones need lags between its samples."""
    from scipy.signal import correlate, resample

    window = window.astype(np.float64) - window.mean()
    if np.sqrt(np.mean(window**2)) < SILENT:
        return None
    finer = max(1, -(-FINE // rate))
    window, rate = resample(window, finer * len(window)), finer * rate
    count = len(window)
    products = correlate(window, window)[count - 1 :]  # at lags 0, 1, ...
    energy = np.concatenate([[0.0], np.cumsum(window**2)])
    lags = np.arange(count)
    alike = products / np.sqrt((energy[count - lags] * (energy[count] - energy[lags])).clip(min=1e-12))
    looked_at = alike[int(rate / PITCHES[1]) : min(int(rate / PITCHES[0]), count // 2) + 2]
    peaks = 1 + np.flatnonzero((looked_at[1:-1] >= looked_at[:-2]) & (looked_at[1:-1] >= looked_at[2:]))
    good = peaks[looked_at[peaks] >= max(PERIODIC, 0.93 * looked_at[peaks].max(initial=0.0))]
    return float(rate / (int(rate / PITCHES[1]) + good[0])) if len(good) else None


def notes_of(clip: Clip) -> list[Note]:
    """Return the notes of a clip: runs of at least two windows of one pitch."""
    size = round(WINDOW * clip.rate)
    windows = [clip.samples[start : start + size] for start in range(0, len(clip.samples) - size + 1, size)]
    runs: list[tuple[int, list[float]]] = []
    open_run = False
    for number, pitch in enumerate(pitch_of(window, clip.rate) for window in windows):
        if pitch is None:
            open_run = False
        elif open_run and abs(pitch / np.median(runs[-1][1]) - 1) < SAME:
            runs[-1][1].append(pitch)
        else:
            runs.append((number, [pitch]))
            open_run = True
    return [Note(start * WINDOW, float(np.median(pitches))) for start, pitches in runs if len(pitches) > 1]


class TuneRule(Verifier):
    """The share of the asked words that are heard: rising or falling, low or high, slow or fast.

    "rising" and "falling" count by the share of steps from note to note that go that way; "low" and "high" by whether the
    median note lies below ``boundary``; "slow" and "fast" by the median time from note to note.
    Fewer than two notes are no tune: 0.
    """

    name = "tune_rule"

    def __init__(self, config: TuneRuleConfig | None = None) -> None:
        super().__init__(config or TuneRuleConfig())

    def verify(self, item: Judged) -> float:
        """Return a number in [0, 1]. Raises `RewardError` where neither prompt nor configuration asks for anything known."""
        text = self.config.words or asked(item.prompt)
        words = [word for word in re.findall(r"[a-z]+", text.lower()) if word in KNOWN]
        if not words:
            raise RewardError(f"reward 'tune_rule' finds none of {', '.join(KNOWN)} in {text[:80]!r}; set its option words")
        notes = notes_of(clip_of(item, self.name))
        if len(notes) < 2:
            return 0.0
        return float(np.mean([self._heard(word, notes) for word in words]))

    def _heard(self, word: str, notes: Sequence[Note]) -> float:
        if word in ("rising", "falling"):
            steps = [after.pitch > before.pitch for before, after in pairwise(notes)]
            return float(np.mean([step == (word == "rising") for step in steps]))
        if word in ("low", "high"):
            return float((np.median([note.pitch for note in notes]) >= self.config.boundary) == (word == "high"))
        interval = np.median([after.start - before.start for before, after in pairwise(notes)])
        return float((interval >= self.config.slow) == (word == "slow"))


KNOWN = ("rising", "falling", "low", "high", "slow", "fast")
