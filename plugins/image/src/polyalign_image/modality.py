"""The codec of still pictures: bytes to RGB and back. Pillow is imported on first use."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any, ClassVar

from polyalign.errors import MediaError
from polyalign.records.modality import Modality

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF", "image/bmp": "BMP"}
SAVE_OPTIONS: dict[str, dict[str, Any]] = {"image/jpeg": {"quality": 95, "subsampling": 0}, "image/webp": {"lossless": True}}
THUMBNAIL = 512  # pixels on the longer side; larger pictures are shown smaller in previews


class ImageModality(Modality):
    """PNG, JPEG, WebP, GIF and BMP; of an animation, the first frame.

    Subclass and set ``max_pixels`` to allow larger pictures.
    """

    name: ClassVar[str] = "image"
    max_pixels: ClassVar[int] = 64_000_000

    def sniff(self, data: bytes) -> str | None:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return "image/png"
        if data.startswith(b"\xff\xd8\xff"):
            return "image/jpeg"
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return "image/webp"
        if data.startswith((b"GIF87a", b"GIF89a")):
            return "image/gif"
        if data.startswith(b"BM") and data[6:10] == bytes(4):  # the reserved field: "BM" alone is also how a text may begin
            return "image/bmp"
        return None

    def decode(self, data: bytes) -> Image:
        """Return the picture as a PIL image in mode RGB, upright (EXIF), transparent pixels on white.

        Raises `MediaError` for other formats, damaged or truncated bytes, and more than ``max_pixels`` pixels.
        """
        from PIL import ImageOps

        picture = self._open(data)
        try:
            picture.load()
            return _on_white(ImageOps.exif_transpose(picture))
        except Exception as error:  # each of Pillow's formats raises its own kinds
            width, height = picture.size
            what = "is truncated" if "truncated" in str(error).lower() else "is damaged"
            raise MediaError(
                f"{FORMATS[self._mime(data)]} picture of {width} x {height} pixels {what} ({len(data)} bytes present): {error}. "
                "Fetch or export the file again."
            ) from error

    def encode(self, medium: Any, mime: str) -> bytes:
        """Return the file bytes; lossless for PNG, WebP and BMP. Raises `MediaError` for a mime type that is not written."""
        if mime not in FORMATS:
            raise MediaError(f"pictures are not written as {mime!r}; expected one of {', '.join(FORMATS)}")
        buffer = io.BytesIO()
        medium.save(buffer, FORMATS[mime], **SAVE_OPTIONS.get(mime, {}))
        return buffer.getvalue()

    def cost(self, data: bytes) -> int:
        """Return the number of pixels, read from the header."""
        width, height = self._open(data).size
        return width * height

    def preview_html(self, data: bytes, mime: str) -> str:
        """Return an ``<img>`` with the bytes inside, or, for a picture that cannot be shown, the reason."""
        try:
            width, height = self._open(data).size
            if max(width, height) > THUMBNAIL:
                small = self.decode(data)
                small.thumbnail((THUMBNAIL, THUMBNAIL))
                data, mime = self.encode(small, "image/jpeg"), "image/jpeg"
        except MediaError as error:
            return f'<span class="broken">{html.escape(str(error))}</span>'
        source = f"data:{mime};base64,{base64.b64encode(data).decode()}"
        return f'<img alt="picture of {width} x {height} pixels" src="{html.escape(source)}">'

    def _mime(self, data: bytes) -> str:
        mime = self.sniff(data)
        if mime is None:
            expected = ", ".join(FORMATS.values())
            raise MediaError(f"not a picture: begins with {data[:8]!r} ({len(data)} bytes); expected {expected}")
        return mime

    def _open(self, data: bytes) -> Image:
        """Read the header only. Only the sniffed format's reader runs: Pillow knows others that start programs."""
        from PIL import Image, UnidentifiedImageError

        name = FORMATS[self._mime(data)]
        try:
            picture = Image.open(io.BytesIO(data), formats=[name])
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise MediaError(f"{name} picture is too large: {error}; the limit is {self.max_pixels} pixels") from error
        except Exception as error:  # each of Pillow's formats raises its own kinds
            reason = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else str(error)
            raise MediaError(
                f"{name} picture is truncated or damaged ({len(data)} bytes present): {reason}. Fetch or export the file again."
            ) from error
        width, height = picture.size
        if width * height > self.max_pixels:
            raise MediaError(
                f"{name} picture of {width} x {height} pixels is too large: {width * height} pixels, the limit is "
                f"{self.max_pixels}. Scale it down first."
            )
        return picture


def _on_white(picture: Image) -> Image:
    from PIL import Image

    if picture.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        picture = picture.point(lambda value: value / 257).convert("L")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return white.convert("RGB")
