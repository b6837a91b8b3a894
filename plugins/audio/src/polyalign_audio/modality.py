"""The codec of sound: file bytes to a float32 waveform and back. soundfile is imported on first use."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from polyalign.errors import MediaError
from polyalign.records.modality import Modality

FORMATS = {"audio/flac": "FLAC", "audio/wav": "WAV", "audio/ogg": "OGG", "audio/mpeg": "MP3"}
SILENCE = 1e-4  # root mean square below which a clip is taken for silent (-80 dB of full scale)
WIDTH, HEIGHT = 240, 40  # of the drawn waveform, in pixels


@dataclass(frozen=True)
class Clip:
    """Sound of one channel: ``samples`` ``[S]`` float32, nominally in [-1, 1], at ``rate`` Hz."""

    samples: np.ndarray
    rate: int

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @property
    def peak(self) -> float:
        return float(np.abs(self.samples).max(initial=0.0))

    @property
    def loudness(self) -> float:
        """Root mean square, on the scale of the samples."""
        return float(np.sqrt(np.mean(np.square(self.samples, dtype=np.float64)))) if len(self.samples) else 0.0

    def at(self, rate: int) -> Clip:
        """Return the clip at another rate: polyphase resampling, low-passed against aliases."""
        if rate == self.rate:
            return self
        from scipy.signal import resample_poly

        return Clip(resample_poly(self.samples, rate, self.rate).astype(np.float32), rate)


class AudioModality(Modality):
    """WAV, FLAC, Ogg and MP3; channels are averaged into one.

    Subclass and set ``max_seconds`` or ``max_rate`` to allow longer or finer clips, ``min_loudness`` to refuse silent ones.
    """

    name: ClassVar[str] = "audio"
    max_seconds: ClassVar[float] = 600.0
    max_rate: ClassVar[int] = 192_000
    min_loudness: ClassVar[float] = 0.0

    def sniff(self, data: bytes) -> str | None:
        if data.startswith(b"fLaC"):
            return "audio/flac"
        if data.startswith(b"OggS"):
            return "audio/ogg"
        if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
            return "audio/wav"
        if data.startswith(b"ID3") or (len(data) > 2 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2):  # a frame of layer III
            return "audio/mpeg"
        return None

    def decode(self, data: bytes) -> Clip:
        """Return the whole clip, at the rate it has.

        Raises `MediaError` for other formats, damaged or truncated bytes, clips past the limits, and for samples that are
        no finite numbers.
        """
        with self._open(data) as file:
            what, frames, rate = self._named(file), file.frames, file.samplerate
            try:
                samples = file.read(dtype="float32", always_2d=True).mean(1)
            except Exception as error:
                raise MediaError(f"{what} is damaged: {error}. Fetch or export the file again.") from error
        if len(samples) < frames:
            raise MediaError(f"{what} is truncated: {len(samples)} of {frames} samples could be read. Fetch the file again.")
        if not len(samples) or not np.isfinite(samples).all():
            raise MediaError(f"{what} holds {'samples that are no numbers' if len(samples) else 'no samples'}; export it again.")
        clip = Clip(samples, rate)
        if clip.loudness < self.min_loudness:
            raise MediaError(f"{what} is too quiet: root mean square {clip.loudness:.1e}, the least is {self.min_loudness:.1e}.")
        return clip

    def encode(self, medium: Any, mime: str) -> bytes:
        """Return the file bytes of a `Clip`: FLAC and WAV of 16 bits, which clip at [-1, 1]; Ogg Vorbis and MP3 lose more.

        Raises `MediaError` for a mime type that is not written and for samples that are no finite numbers.
        """
        import soundfile

        if mime not in FORMATS:
            raise MediaError(f"sound is not written as {mime!r}; expected one of {', '.join(FORMATS)}")
        if not np.isfinite(medium.samples).all():
            raise MediaError(f"a clip of {medium.duration:.2f} s holds samples that are no finite numbers; it cannot be written")
        buffer = io.BytesIO()
        subtype = "PCM_16" if mime in ("audio/flac", "audio/wav") else None
        soundfile.write(buffer, np.clip(medium.samples, -1.0, 1.0), medium.rate, format=FORMATS[mime], subtype=subtype)
        return buffer.getvalue()

    def cost(self, data: bytes) -> int:
        """Return the number of samples of one channel, read from the header."""
        with self._open(data) as file:
            return int(file.frames)

    def seconds(self, data: bytes) -> float:
        """Return the length in seconds, read from the header."""
        with self._open(data) as file:
            return float(file.frames / file.samplerate)

    def preview_html(self, data: bytes, mime: str) -> str:
        """Return a player with the bytes inside over a drawn waveform, or, for a clip that cannot be read, the reason."""
        try:
            clip = self.decode(data)
        except MediaError as error:
            return f'<span class="broken">{html.escape(str(error))}</span>'
        source = f"data:{html.escape(mime)};base64,{base64.b64encode(data).decode()}"
        about = f"{clip.duration:.2f} s, {clip.rate} Hz, peak {clip.peak:.2f}" + (", silent" * (clip.loudness < SILENCE))
        return (
            f'<figure class="audio">{waveform_svg(clip)}<audio controls preload="none" src="{source}"></audio>'
            f"<figcaption>{about}</figcaption></figure>"
        )

    def _open(self, data: bytes) -> Any:
        """Read the header only, and hold it against the limits."""
        import soundfile

        if self.sniff(data) is None:
            expected = "WAV, FLAC, Ogg, MP3"
            raise MediaError(f"not a sound: begins with {data[:8]!r} ({len(data)} bytes); expected {expected}")
        try:
            file = soundfile.SoundFile(io.BytesIO(data))
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise MediaError(
                f"sound is truncated or damaged ({len(data)} bytes present): {error}. Fetch or export the file again."
            ) from error
        if file.samplerate > self.max_rate:
            raise MediaError(f"{self._named(file)} is too fine; the limit is {self.max_rate} Hz. Resample it first.")
        if file.frames > self.max_seconds * file.samplerate:
            raise MediaError(f"{self._named(file)} is too long; the limit is {self.max_seconds:g} s. Cut it first.")
        return file

    @staticmethod
    def _named(file: Any) -> str:
        return f"{file.format} sound of {file.frames / file.samplerate:.2f} s at {file.samplerate} Hz"


def waveform_svg(clip: Clip) -> str:
    """Return a small drawing: for each column of pixels, a line from the least sample to the greatest."""
    edges = np.linspace(0, len(clip.samples), WIDTH + 1).astype(int)
    middle = HEIGHT / 2
    strokes = []
    for column, (start, end) in enumerate(zip(edges, np.maximum(edges[1:], edges[:-1] + 1))):
        part = np.clip(clip.samples[start:end], -1.0, 1.0)
        if len(part):
            strokes.append(f"M{column} {middle * (1 - part.max()):.1f}V{middle * (1 - part.min()) + 0.5:.1f}")
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="waveform">'
        f'<path d="{"".join(strokes)}" stroke="currentColor" fill="none"/></svg>'
    )
