"""The picture codec: what goes in comes out upright and opaque, and what is broken is named."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from polyalign.errors import MediaError
from polyalign_image.modality import FORMATS, ImageModality

codec = ImageModality()


def noise(height: int = 20, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(height: int = 24, width: int = 32) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 8, columns * 6, rows * 4 + columns * 3], -1).astype(np.uint8))


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mime", FORMATS)
def test_every_format_is_recognised_by_its_bytes_and_costs_its_pixels(mime: str) -> None:
    data = codec.encode(noise(), mime)
    assert codec.sniff(data) == mime
    assert codec.cost(data) == 600


@pytest.mark.parametrize("mime", ["image/png", "image/webp", "image/bmp"])
def test_lossless_formats_return_the_same_pixels(mime: str) -> None:
    picture = codec.decode(codec.encode(noise(), mime))
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(noise()))


@pytest.mark.parametrize(("mime", "tolerance"), [("image/jpeg", 3), ("image/gif", 40)])
def test_lossy_formats_stay_close_on_a_smooth_picture(mime: str, tolerance: float) -> None:
    decoded = np.asarray(codec.decode(codec.encode(smooth(), mime)), float)
    assert np.abs(decoded - np.asarray(smooth(), float)).mean() < tolerance


@pytest.mark.parametrize("data", [b"", b"hello", b"BM, the magazine", b"RIFF\0\0\0\0WAVEfmt ", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_other_bytes_are_not_pictures(data: bytes) -> None:
    assert codec.sniff(data) is None
    with pytest.raises(MediaError, match=r"not a picture: begins with .* expected PNG, JPEG, WEBP, GIF, BMP"):
        codec.decode(data)


def test_transparency_is_laid_on_white() -> None:
    """Red at alpha 0, 128/255 and 1 over white is white, (255, 127, 127) and red."""
    pixels = np.array([[[255, 0, 0, 0], [255, 0, 0, 128], [255, 0, 0, 255]]], np.uint8)
    for form in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        decoded = np.asarray(codec.decode(saved(Image.fromarray(pixels, "RGBA"), form, **options)), int)
        assert np.abs(decoded - [[[255, 255, 255], [255, 127, 127], [255, 0, 0]]]).max() <= 1


def test_a_transparent_palette_colour_is_laid_on_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    for form in ("PNG", "GIF"):
        decoded = np.asarray(codec.decode(saved(picture, form, transparency=0)))
        np.testing.assert_array_equal(decoded, [[[255, 255, 255], [0, 0, 255]]])


def test_exif_orientation_is_applied() -> None:
    """Orientation 6: the camera was turned, the picture is shown rotated by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = codec.decode(saved(noise(20, 30), "PNG", exif=exif))
    assert decoded.size == (20, 30)
    np.testing.assert_array_equal(np.asarray(decoded), np.rot90(np.asarray(noise(20, 30)), k=-1))


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    grey = np.array([[0, 257 * 10, 257 * 200, 65535]], np.uint16)
    decoded = np.asarray(codec.decode(saved(Image.fromarray(grey), "PNG")))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 10, 200, 255])


def test_of_an_animation_the_first_frame_is_read() -> None:
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    for form in ("GIF", "WEBP"):
        decoded = codec.decode(saved(red, form, save_all=True, append_images=[blue], lossless=True))
        assert np.abs(np.asarray(decoded, int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("mime", FORMATS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_truncated_file_is_called_truncated(mime: str, share: float) -> None:
    data = codec.encode(noise(60, 60), mime)
    with pytest.raises(MediaError, match=rf"{FORMATS[mime]} picture .*truncated") as caught:
        codec.decode(data[: int(len(data) * share)])
    assert "0x" not in str(caught.value)  # no address of a buffer in a message for people


def test_a_damaged_file_is_refused() -> None:
    data = bytearray(codec.encode(noise(), "image/png"))
    data[60] ^= 0xFF
    with pytest.raises(MediaError, match="PNG picture of 30 x 20 pixels is damaged"):
        codec.decode(bytes(data))


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    """60,000 x 60,000 is past Pillow's own limit too, 12,000 x 12,000 where Pillow only warns, 9,000 x 9,000 past ours only."""
    bomb = png_claiming(side, side)
    for read in (codec.decode, codec.cost):
        with pytest.raises(MediaError, match=r"too large.*limit"):
            read(bomb)


def test_the_pixel_limit_can_be_set_by_a_subclass() -> None:
    class Small(ImageModality):
        max_pixels = 599

    with pytest.raises(MediaError, match="30 x 20 pixels is too large: 600 pixels, the limit is 599"):
        Small().decode(codec.encode(noise(), "image/png"))


def test_an_unknown_mime_type_is_not_written() -> None:
    with pytest.raises(MediaError, match="'image/tiff'; expected one of image/png"):
        codec.encode(noise(), "image/tiff")


def test_preview_holds_the_picture_and_escapes_the_mime_type() -> None:
    data = codec.encode(noise(), "image/png")
    page = codec.preview_html(data, 'image/png" onerror="alert(1)')
    assert page.startswith('<img alt="picture of 30 x 20 pixels" src="data:image/png&quot; onerror=&quot;alert(1);base64,')
    assert page.count('"') == 4


def test_preview_scales_large_pictures_down() -> None:
    data = codec.encode(noise(900, 1800), "image/png")
    page = codec.preview_html(data, "image/png")
    assert "picture of 1800 x 900 pixels" in page
    assert len(page) < len(data) / 3


def test_preview_of_a_broken_picture_says_why() -> None:
    page = codec.preview_html(b"<script>", "image/png")
    assert page.startswith('<span class="broken">not a picture: begins with b&#x27;&lt;script')
