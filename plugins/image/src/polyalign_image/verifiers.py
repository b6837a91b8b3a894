"""Verifiers of pictures, on [0, 1]: size, main colour, and the text that can be read in them."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from typing import Any

import numpy as np
from PIL.Image import Image

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, asked
from polyalign.rewards.rules.base import Verifier, within
from polyalign_image.config import DominantColourConfig, ImageSizeConfig, OcrTextConfig
from polyalign_image.foreground import foreground_shares
from polyalign_image.judged import pictures_of
from polyalign_image.palette import colour_shares


class PictureVerifier(Verifier):
    """A check of a picture. Raises `MediaError` for a response that is none."""

    def verify(self, item: Judged) -> float:
        (picture,) = pictures_of([item])
        return self.verify_picture(picture, item)

    def verify_picture(self, picture: Image, item: Judged) -> float:
        raise NotImplementedError


class ImageSize(PictureVerifier):
    """1 if width, height and their ratio are as asked, else 0."""

    name = "image_size"
    config: ImageSizeConfig

    def verify_picture(self, picture: Image, item: Judged) -> float:
        config, (width, height) = self.config, picture.size
        sides = within(width, config.min_width, config.max_width) and within(height, config.min_height, config.max_height)
        return sides and (config.ratio is None or abs(width / height / config.ratio - 1) <= config.ratio_tolerance)


class DominantColour(PictureVerifier):
    """1 if no palette colour covers more of the picture, and it covers at least ``share``; else 0."""

    name = "dominant_colour"
    config: DominantColourConfig

    def verify_picture(self, picture: Image, item: Judged) -> float:
        rgb = np.asarray(picture)
        shares = foreground_shares(rgb) if self.config.thing else colour_shares(rgb)
        own = shares[self.config.colour]
        return own == max(shares.values()) and own >= self.config.share


class OcrText(PictureVerifier):
    """How much of the wanted text can be read in the picture: 1 - edit distance / length of the text, at least 0.

    The text is the configured one, or what stands in quotation marks in the prompt. Case, accents' spelling, blanks and
    punctuation do not count. The distance is to the stretch of what was read that fits best, so more text costs nothing.
    """

    name = "ocr_text"
    config: OcrTextConfig

    @cached_property
    def reader(self) -> Any:
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            wanted = "pip install 'polyalign-image[ocr]', and on Debian libgl1"
            raise RewardError(f"ocr_text needs rapidocr-onnxruntime: {wanted} ({error})") from error
        return RapidOCR()

    def verify_picture(self, picture: Image, item: Judged) -> float:
        wanted = self.config.text or " ".join(re.findall(r"[\"“]([^\"“”]+)[\"”]", asked(item.prompt)))
        target = letters(wanted)
        if not target:
            raise RewardError("reward 'ocr_text' knows no text to look for: set text, or quote it in the prompt")
        return max(0.0, 1 - nearest_distance(target, letters(self.read(picture))) / len(target))

    def read(self, picture: Image) -> str:
        """Return the text found, line by line from the top."""
        scale = max(1.0, self.config.shorter_side / min(picture.size))
        large = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        found, _ = self.reader(np.asarray(large)[:, :, ::-1])  # the engine takes BGR
        return " ".join(line[1] for line in found or ())


def letters(text: str) -> str:
    """Return the letters and digits of a text, in one case and one Unicode form."""
    return "".join(mark for mark in unicodedata.normalize("NFKC", text).casefold() if mark.isalnum())


def nearest_distance(target: str, text: str) -> int:
    """Return the least Levenshtein distance between ``target`` and any stretch of ``text`` (Sellers 1980)."""
    row = [0] * (len(text) + 1)  # a stretch may begin anywhere
    for number, wanted in enumerate(target, 1):
        above, row = row, [number]
        for at, found in enumerate(text, 1):
            row.append(min(above[at] + 1, row[at - 1] + 1, above[at - 1] + (wanted != found)))
    return min(row)
