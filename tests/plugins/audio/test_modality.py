"""The codec of sound: what goes in comes out, limits hold, damage is said."""

from __future__ import annotations

import numpy as np
import pytest

from polyalign.errors import MediaError
from polyalign_audio.clips import chirp
from polyalign_audio.modality import AudioModality, Clip

CODEC = AudioModality()
CLIP = chirp(0.5, 16_000)


def short(**limits: float) -> AudioModality:
    return type("Limited", (AudioModality,), limits)()


@pytest.mark.parametrize(("mime", "error"), [("audio/flac", 1e-4), ("audio/wav", 1e-4), ("audio/ogg", 0.1), ("audio/mpeg", 0.1)])
def test_every_format_is_written_recognised_and_read(mime: str, error: float) -> None:
    """16 bits are off by half a step of 2**-15 at most; the lossy formats follow the waveform (MP3 with a delay: length only)."""
    data = CODEC.encode(CLIP, mime)
    assert CODEC.sniff(data) == mime
    found = CODEC.decode(data)
    assert found.rate == 16_000 and found.samples.dtype == np.float32
    assert found.duration == pytest.approx(0.5, abs=0.2 if mime == "audio/mpeg" else 1e-9)
    assert CODEC.cost(data) == len(found.samples) and CODEC.seconds(data) == pytest.approx(found.duration)
    if mime != "audio/mpeg":
        assert np.abs(found.samples - CLIP.samples).max() < error


def test_channels_are_averaged() -> None:
    import io

    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([np.full(100, 0.5), np.full(100, -0.25)], 1), 8000, format="WAV")
    np.testing.assert_allclose(CODEC.decode(buffer.getvalue()).samples, 0.125, atol=1e-4)


def test_resampling_keeps_length_and_pitch_and_drops_what_does_not_fit() -> None:
    """A tone of 1 kHz stays one at 8 kHz; a tone of 6 kHz lies above half of 8 kHz and must vanish, not fold back to 2 kHz."""
    time = np.arange(16_000) / 16_000
    for hertz, left in ((1000, True), (6000, False)):
        found = Clip(np.sin(2 * np.pi * hertz * time).astype(np.float32), 16_000).at(8000)
        assert found.rate == 8000 and len(found.samples) == 8000
        spectrum = np.abs(np.fft.rfft(found.samples))
        assert (spectrum.argmax() == hertz and spectrum.max() > 3000) if left else spectrum[100:-100].max() < 100
    assert CLIP.at(CLIP.rate) is CLIP


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"not a sound", "not a sound: begins with b'not a so'"),
        (CODEC.encode(CLIP, "audio/wav")[:30], "truncated or damaged"),
        (CODEC.encode(CLIP, "audio/flac")[:2000], "damaged|truncated"),
    ],
)
def test_what_cannot_be_read_is_said(data: bytes, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        CODEC.decode(data)
    assert 'class="broken"' in CODEC.preview_html(data, "audio/wav")


def test_limits_are_held_from_the_header_and_named() -> None:
    data = CODEC.encode(CLIP, "audio/flac")
    with pytest.raises(MediaError, match=r"FLAC sound of 0.50 s at 16000 Hz is too long; the limit is 0.2 s"):
        short(max_seconds=0.2).cost(data)
    with pytest.raises(MediaError, match=r"too fine; the limit is 8000 Hz"):
        short(max_rate=8000).cost(data)
    silent = CODEC.encode(Clip(np.zeros(800, np.float32), 8000), "audio/flac")
    with pytest.raises(MediaError, match="too quiet"):
        short(min_loudness=1e-3).decode(silent)
    with pytest.raises(MediaError, match="no finite numbers"):
        CODEC.encode(Clip(np.array([0.0, np.nan], np.float32), 8000), "audio/flac")


def test_a_preview_plays_and_shows_the_waveform() -> None:
    page = CODEC.preview_html(CODEC.encode(CLIP, "audio/flac"), "audio/flac")
    assert '<audio controls preload="none" src="data:audio/flac;base64,' in page and "<svg" in page
    assert "0.50 s, 16000 Hz, peak 0.30" in page
    assert "silent" in CODEC.preview_html(CODEC.encode(Clip(np.zeros(800, np.float32), 8000), "audio/wav"), "audio/wav")
