"""The video codec: what goes in comes out frame by frame, budgets hold, and what is broken is named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from polyalign.errors import MediaError
from polyalign_video.clip import Clip, at_rate, keyed, uniform
from polyalign_video.modality import VideoModality, write_with

codec = VideoModality()


def moving(frames: int = 8, height: int = 24, width: int = 32) -> Clip:
    """A ramp of grey with a bright bar that goes to the right, two pixels a frame."""
    made = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, None, :, None] * 4, (frames, height, width, 3)).copy()
    for number in range(frames):
        made[number, :, 2 * number : 2 * number + 8] = (250, 200, 40)
    return Clip(made, 8.0)


def frozen() -> Clip:
    return Clip(np.repeat(moving().frames[:1], 8, 0), 8.0)


def contained(form: str, codec_name: str) -> bytes:
    return write_with(codec_name, moving(), form, {})


def gif() -> bytes:
    frames = [Image.fromarray(frame) for frame in moving().frames]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=120)
    return buffer.getvalue()


MADE = {
    "image/webp": lambda: codec.encode(moving(), "image/webp"),
    "video/mp4": lambda: codec.encode(moving(), "video/mp4"),
    "video/webm": lambda: codec.encode(moving(), "video/webm"),
    "video/x-matroska": lambda: contained("matroska", "libx264"),
    "video/x-msvideo": lambda: contained("avi", "mpeg4"),
    "video/quicktime": lambda: contained("mov", "libx264"),
    "image/gif": gif,
}


@pytest.mark.parametrize("mime", MADE)
def test_every_format_is_recognised_and_read_within_what_its_compression_loses(mime: str) -> None:
    data = MADE[mime]()
    clip = codec.decode(data)
    assert codec.sniff(data) == mime
    assert clip.frames.shape == (8, 24, 32, 3) and clip.frames.dtype == np.uint8
    assert clip.fps == pytest.approx(1000 / 120 if mime == "image/gif" else 8.0)
    assert codec.cost(data) == 8 * 24 * 32
    assert np.abs(clip.frames.astype(int) - moving().frames).mean() < (1e-9 if mime == "image/webp" else 12)


@pytest.mark.parametrize("clip", [moving(), frozen(), Clip(moving(1).frames, 4.0)], ids=["moving", "frozen", "one frame"])
def test_animated_webp_keeps_every_frame_exactly(clip: Clip) -> None:
    """Pillow's own writer joins equal neighbours: a frozen clip would come back as one frame."""
    data = codec.encode(clip, "image/webp")
    assert codec.sniff(data) == "image/webp" and data == codec.encode(clip, "image/webp")
    found = codec.decode(data)
    np.testing.assert_array_equal(found.frames, clip.frames)
    assert found.duration == pytest.approx(clip.duration)


def test_still_pictures_and_other_files_are_not_clips() -> None:
    stills = []
    for form in ("WEBP", "GIF", "PNG"):
        buffer = io.BytesIO()
        Image.fromarray(moving().frames[0]).save(buffer, form)
        stills.append(buffer.getvalue())
    for data in (*stills, b"", b"hello", b"RIFF\0\0\0\0WAVEfmt ", b"\0\0\0\x20ftypM4A "):
        assert codec.sniff(data) is None
        with pytest.raises(MediaError, match="not a clip: begins with"):
            codec.decode(data)


@pytest.mark.parametrize("mime", ["video/mp4", "image/webp", "video/webm"])
def test_chosen_frames_are_those_of_the_whole_clip_at_a_rate_that_keeps_the_duration(mime: str) -> None:
    data = MADE[mime]()
    whole, some = codec.decode(data), codec.decode(data, lambda total, fps: np.array([1, 2, 6]))
    np.testing.assert_array_equal(some.frames, whole.frames[[1, 2, 6]])
    assert some.duration == pytest.approx(whole.duration)


@pytest.mark.parametrize("mime", ["video/mp4", "image/webp", "video/x-matroska", "image/gif"])
def test_damaged_and_truncated_clips_are_named(mime: str) -> None:
    data = MADE[mime]()
    with pytest.raises(MediaError, match="truncated or damaged|is truncated|holds nothing"):
        codec.decode(data[: len(data) // 2])


def test_budgets_are_held_against_the_header_before_a_frame_is_decoded() -> None:
    class Narrow(VideoModality):
        max_frames, max_side, max_pixels = 4, 4096, 10**9

    class Small(VideoModality):
        max_side = 20

    class Few(VideoModality):
        max_pixels = 4 * 24 * 32

    data = MADE["video/mp4"]()
    with pytest.raises(MediaError, match="too large: 8 frames, the limit is 4"):
        Narrow().cost(data)
    with pytest.raises(MediaError, match="too large: 32 pixels a side, the limit is 20"):
        Small().decode(data)
    with pytest.raises(MediaError, match="8 frames are 6144 pixels, the limit is 3072"):
        Few().decode(data)
    assert len(Few().decode(data, lambda total, fps: uniform(total, 4))) == 4


def test_odd_sizes_and_unknown_formats_name_the_way_out() -> None:
    odd = Clip(moving().frames[:, :23], 8.0)
    with pytest.raises(MediaError, match="wants even sizes, this clip has 32 x 23 pixels; write image/webp instead"):
        codec.encode(odd, "video/mp4")
    with pytest.raises(MediaError, match="not written as 'video/x-flv'"):
        codec.encode(odd, "video/x-flv")


@pytest.mark.parametrize(
    ("mime", "player"), [("video/mp4", "<video controls"), ("video/x-msvideo", "video/mp4"), ("image/webp", "image/webp")]
)
def test_a_preview_plays_the_clip_over_a_strip_of_its_frames(mime: str, player: str) -> None:
    page = codec.preview_html(MADE[mime](), mime)
    assert player in page and 'alt="contact sheet"' in page and "8 frames of 32 x 24" in page
    assert 'class="broken"' in codec.preview_html(b"<script>", mime) and "<script>" not in codec.preview_html(b"<script>", mime)


def test_sampling_spreads_evenly_within_limits() -> None:
    """8 frames in stretches of 2: their middles. 10 s at 30 fps, 2 a second: 20 frames; limited to 8."""
    assert uniform(8, 4).tolist() == [1, 3, 5, 7]
    assert uniform(3, 16).tolist() == [0, 1, 2]
    assert len(at_rate(300, 30.0, 2.0, 64)) == 20 and len(at_rate(300, 30.0, 2.0, 8)) == 8
    assert len(at_rate(10, 5.0, 60.0, 64)) == 10 and len(at_rate(1, 30.0, 1.0, 8)) == 1


def test_keyed_sampling_draws_one_frame_of_each_stretch_and_the_same_for_the_same_key() -> None:
    draws = [keyed(40, 4, "run", number) for number in range(50)]
    assert all(0 <= at - 10 * stretch < 10 for draw in draws for stretch, at in enumerate(draw))
    assert keyed(40, 4, "run", 3).tolist() == draws[3].tolist() and len({tuple(draw) for draw in draws}) > 40
