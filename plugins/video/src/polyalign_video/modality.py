"""The codec of video: file bytes to clips of RGB frames and back. PyAV and Pillow are imported on first use."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from polyalign.errors import MediaError
from polyalign.records.modality import Modality
from polyalign_video.clip import Clip, uniform

STILLS = {"image/webp": "WEBP", "image/gif": "GIF"}  # animations, which Pillow reads: the mime type and Pillow's name
CONTAINERS = {  # what PyAV reads: the mime type and FFmpeg's name of the only reader that may run
    "video/mp4": "mp4", "video/quicktime": "mov", "video/webm": "webm", "video/x-matroska": "matroska", "video/x-msvideo": "avi",
}  # fmt: skip
CODECS = {  # what is written: the mime type, FFmpeg's encoder, its options
    "video/mp4": ("libx264", {"crf": "18", "preset": "medium"}),
    "video/webm": ("libvpx-vp9", {"crf": "24", "b": "0"}),
}
PLAYED = {"video/mp4", "video/webm"}  # what browsers play; others are shown as MP4
SHEET, SHEET_SIDE, PLAYED_BYTES, PLAYED_FRAMES, PLAYED_SIDE = 8, 128, 4 * 2**20, 120, 320  # of previews
Pick = Callable[[int, float], np.ndarray]  # (number of frames, frames per second) -> numbers of the frames to keep, ascending


@dataclass(frozen=True)
class Header:
    """What is known of a file before a frame is decoded."""

    what: str  # in words, for messages
    frames: int
    width: int
    height: int
    fps: float


class VideoModality(Modality):
    """MP4, WebM, Matroska, AVI and QuickTime; animated WebP and GIF.

    Subclass and set ``max_frames``, ``max_side`` or ``max_pixels`` (of all frames that are kept) to allow more.
    """

    name: ClassVar[str] = "video"
    max_frames: ClassVar[int] = 20_000
    max_side: ClassVar[int] = 4_096
    max_pixels: ClassVar[int] = 500_000_000

    def sniff(self, data: bytes) -> str | None:
        """Return the mime type; still WebP and GIF pictures are not video."""
        if data[4:8] == b"ftyp":
            brand = data[8:12]
            audio_or_picture = brand in (b"M4A ", b"M4B ", b"heic", b"heix", b"mif1", b"avif")
            return None if audio_or_picture else "video/quicktime" if brand == b"qt  " else "video/mp4"
        if data.startswith(b"\x1aE\xdf\xa3"):
            return "video/webm" if b"webm" in data[:64] else "video/x-matroska" if b"matroska" in data[:64] else None
        if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
            return "video/x-msvideo"
        if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and data[20:21] and data[20] & 2:
            return "image/webp"
        if data.startswith((b"GIF87a", b"GIF89a")) and data.count(b"\x21\xf9\x04") > 1:
            return "image/gif"
        return None

    def decode(self, data: bytes, pick: Pick | None = None) -> Clip:
        """Return the clip: all frames, or those that ``pick`` chooses, at the rate that keeps the duration.

        Raises `MediaError` for other formats, damaged or truncated bytes, and clips past the limits.
        """
        with self._open(data) as (header, frames):
            kept = np.arange(header.frames) if pick is None else pick(header.frames, header.fps)
            pixels = len(kept) * header.width * header.height
            if pixels > self.max_pixels:
                raise MediaError(
                    f"{header.what}: {len(kept)} frames are {pixels} pixels, the limit is {self.max_pixels}. "
                    "Look at fewer frames, or scale the clip down first."
                )
            wanted = set(kept.tolist())
            found = []
            for number, frame in enumerate(itertools.islice(frames, int(kept[-1]) + 1)):
                if number in wanted:
                    picture = frame()
                    if picture.shape[:2] != (header.height, header.width):
                        raise MediaError(f"{header.what} changes its size to {picture.shape[1]} x {picture.shape[0]} half-way")
                    found.append(picture)
        if len(found) < len(kept):
            raise MediaError(
                f"{header.what} is truncated: {len(found)} of {len(kept)} frames could be read ({len(data)} bytes present). "
                "Fetch or export the file again."
            )
        return Clip(np.stack(found), header.fps * len(kept) / header.frames)

    def encode(self, medium: Any, mime: str) -> bytes:
        """Return the file bytes of a `Clip`: lossless as animated WebP, else H.264 or VP9 with halved colour resolution.

        Raises `MediaError` for a mime type that is not written, and for odd sizes where the format halves them.
        """
        if mime == "image/webp":
            from polyalign_video import animated_webp

            return animated_webp.encode(medium.frames, medium.fps)
        if mime not in CODECS:
            raise MediaError(f"video is not written as {mime!r}; expected one of image/webp, {', '.join(CODECS)}")
        height, width = medium.frames.shape[1:3]
        if height % 2 or width % 2:
            raise MediaError(f"{mime} wants even sizes, this clip has {width} x {height} pixels; write image/webp instead")
        codec, options = CODECS[mime]
        return write_with(codec, medium, CONTAINERS[mime], options)

    def header(self, data: bytes) -> Header:
        """Return what the file says of itself, without decoding a frame. Raises `MediaError` as `decode` does."""
        with self._open(data) as (header, _):
            return header

    def cost(self, data: bytes) -> int:
        """Return the number of pixels of all frames, without decoding any."""
        header = self.header(data)
        return header.frames * header.width * header.height

    def preview_html(self, data: bytes, mime: str) -> str:
        """Return a player over a strip of frames, or, for a clip that cannot be read, the reason."""
        try:
            header = self.header(data)
            strip = self.decode(data, lambda total, fps: uniform(total, SHEET))
            if mime not in PLAYED | STILLS.keys() or len(data) > PLAYED_BYTES:
                played = self.decode(data, lambda total, fps: uniform(total, PLAYED_FRAMES))
                data, mime = self.encode(smaller(played, PLAYED_SIDE), "video/mp4"), "video/mp4"
        except MediaError as error:
            return f'<span class="broken">{html.escape(str(error))}</span>'
        source = html.escape(f"data:{mime};base64,{base64.b64encode(data).decode()}")
        about = f"{header.frames} frames of {header.width} x {header.height}, {header.fps:.3g} per second"
        player = (
            f'<img alt="clip" src="{source}">'
            if mime in STILLS
            else f'<video controls loop muted playsinline src="{source}"></video>'
        )
        return (
            f'<figure class="video">{player}<br><img alt="contact sheet" src="data:image/png;base64,{_sheet(strip)}">'
            f"<figcaption>{about}</figcaption></figure>"
        )

    @contextmanager
    def _open(self, data: bytes) -> Iterator[tuple[Header, Iterator[Callable[[], np.ndarray]]]]:
        """Yield the header, held against the limits, and the frames in order, each still to be turned into RGB."""
        mime = self.sniff(data)
        if mime is None:
            raise MediaError(
                f"not a clip: begins with {data[:12]!r} ({len(data)} bytes); expected MP4, WebM, Matroska, AVI, QuickTime, "
                "animated WebP or GIF"
            )
        form = STILLS.get(mime, CONTAINERS.get(mime, "")).upper()
        try:
            with _animation(data, form) if mime in STILLS else _container(data, CONTAINERS[mime]) as (header, frames):
                side = max(header.width, header.height)
                limits = ((header.frames, self.max_frames, "frames"), (side, self.max_side, "pixels a side"))
                for found, limit, unit in limits:
                    if found > limit:
                        raise MediaError(f"{header.what} is too large: {found} {unit}, the limit is {limit}.")
                yield header, frames
        except MediaError:
            raise
        except Exception as error:  # each of the readers raises its own kinds
            raise MediaError(
                f"{form} clip is truncated or damaged ({len(data)} bytes present): {error}. Fetch or export the file again."
            ) from error


@contextmanager
def _animation(data: bytes, form: str) -> Iterator[tuple[Header, Iterator[Callable[[], np.ndarray]]]]:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=[form]) as picture:
        total = getattr(picture, "n_frames", 1)
        milliseconds = _milliseconds(data, form, picture, total)
        header = _header(form, total, *picture.size, 1000 * total / milliseconds)

        def frames() -> Iterator[Callable[[], np.ndarray]]:
            for number in range(total):
                picture.seek(number)
                yield lambda: _on_white(picture.convert("RGBA"))

        yield header, frames()


def _milliseconds(data: bytes, form: str, picture: Any, total: int) -> float:
    """Return how long an animation lasts, from its headers; 100 ms a frame where it does not say."""
    if form == "GIF":
        found = sum(data[at + 4] + 256 * data[at + 5] for at in _places(data, b"\x21\xf9\x04") if at + 5 < len(data)) * 10
    else:
        found = sum(int.from_bytes(data[at + 20 : at + 23], "little") for at in _places(data, b"ANMF"))
    return found if found > 0 else 100.0 * total


@contextmanager
def _container(data: bytes, form: str) -> Iterator[tuple[Header, Iterator[Callable[[], np.ndarray]]]]:
    import av

    with av.open(io.BytesIO(data), format=form) as file:
        if not file.streams.video:
            raise MediaError(f"{form.upper()} file holds no video stream")
        stream = file.streams.video[0]
        total = stream.frames or sum(packet.size > 0 for packet in file.demux(stream))  # not every container counts
        rate = stream.average_rate or Fraction(25)
        file.seek(0)
        header = _header(form.upper(), total, stream.codec_context.width, stream.codec_context.height, float(rate))
        stream.thread_type = "AUTO"

        def as_rgb(frame: Any) -> Callable[[], np.ndarray]:
            return lambda: frame.to_ndarray(format="rgb24")

        yield header, map(as_rgb, file.decode(stream))


def _header(form: str, frames: int, width: int, height: int, fps: float) -> Header:
    what = f"{form} clip of {frames} frames, {width} x {height} pixels"
    if not (frames and width and height):
        raise MediaError(f"{what} holds nothing to look at")
    return Header(what, frames, width, height, fps)


def write_with(codec: str, clip: Clip, container: str, options: dict[str, str]) -> bytes:
    """Return the clip as one of FFmpeg's encoders writes it (crf and the like in ``options``), in one thread: equal clips,
    equal bytes."""
    import av

    buffer = io.BytesIO()
    height, width = clip.frames.shape[1:3]
    with av.open(buffer, "w", format=container, options={"fflags": "bitexact"}) as file:
        stream = file.add_stream(codec, rate=Fraction(clip.fps).limit_denominator(1000), options=dict(options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in clip.frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def _places(data: bytes, mark: bytes) -> Iterator[int]:
    at = data.find(mark)
    while at >= 0:
        yield at
        at = data.find(mark, at + 1)


def _on_white(picture: Any) -> np.ndarray:
    from PIL import Image

    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB"))


def smaller(clip: Clip, side: int) -> Clip:
    """Return the clip with at most ``side`` pixels a side, both even."""
    from PIL import Image

    height, width = clip.frames.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = (max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2))
    return Clip(np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in clip.frames]), clip.fps)


def contact_sheet(clip: Clip, side: int = SHEET_SIDE) -> np.ndarray:
    """Return the frames side by side, ``[H, F * W, 3]`` uint8, scaled so that they are about ``side`` pixels high."""
    from PIL import Image

    height, width = clip.frames.shape[1:3]
    size = (max(1, round(width * side / height)), side)
    how = Image.Resampling.NEAREST if side > height else Image.Resampling.BOX
    return np.concatenate([np.asarray(Image.fromarray(frame).resize(size, how)) for frame in clip.frames], 1)


def _sheet(clip: Clip) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(contact_sheet(clip)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
