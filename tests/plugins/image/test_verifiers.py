"""Verifiers of pictures: by hand, and by what an OCR engine reads in rendered text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from polyalign.errors import MediaError, RewardError
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign.rewards.config import RewardSlot
from polyalign_image.verifiers import letters, nearest_distance


def score(slot: dict[str, object], picture: object, prompt: str = "p", **fields: object) -> float:
    item = Judged((Message(role="user", parts=prompt),), picture, **fields)  # type: ignore[arg-type]
    (value,) = RewardSlot.model_validate(slot).build().score([item])
    return float(value)


def test_sizes() -> None:
    wide = Image.new("RGB", (40, 20))
    assert score({"name": "image_size", "min_width": 40, "max_height": 20}, wide) == 1
    assert score({"name": "image_size", "max_width": 39}, wide) == 0
    assert score({"name": "image_size", "min_height": 21}, wide) == 0
    assert score({"name": "image_size", "ratio": 2}, wide) == 1
    assert score({"name": "image_size", "ratio": 2.1}, wide) == 0
    assert score({"name": "image_size", "ratio": 2.1, "ratio_tolerance": 0.05}, wide) == 1
    with pytest.raises(ValidationError, match="give at least one of"):
        RewardSlot.model_validate("image_size")
    with pytest.raises(MediaError, match="expected a picture"):
        score({"name": "image_size", "min_width": 1}, "text")


def test_the_dominant_colour_of_a_picture_and_of_a_thing_on_white() -> None:
    picture = Image.new("RGB", (20, 20), "white")
    picture.paste("red", (5, 5, 15, 15))
    assert score({"name": "dominant_colour", "colour": "white"}, picture) == 1
    assert score({"name": "dominant_colour", "colour": "red"}, picture) == 0
    assert score({"name": "dominant_colour", "colour": "red", "thing": True}, picture) == 1
    assert score({"name": "dominant_colour", "colour": "white", "share": 0.75}, picture) == 1
    assert score({"name": "dominant_colour", "colour": "white", "share": 0.76}, picture) == 0
    with pytest.raises(ValidationError, match="unknown colour 'mauve'"):
        RewardSlot.model_validate({"name": "dominant_colour", "colour": "mauve"})


def test_a_record_asks_things_of_a_picture() -> None:
    """Two of three constraints kept, from a record's own list."""
    asked = [
        {"name": "image_size", "min_width": 8},
        {"name": "dominant_colour", "colour": "blue"},
        {"name": "image_size", "ratio": 2},
    ]
    assert (
        score({"name": "constraints"}, Image.new("RGB", (8, 8), "blue"), conditions={"constraints": json.dumps(asked)}) == 2 / 3
    )


@given(st.text("abc", max_size=6), st.text("abc", max_size=8))
def test_the_distance_is_that_to_the_best_stretch(target: str, text: str) -> None:
    def levenshtein(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0]))

    target, text = target[:4], text[:5]
    stretches = {text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)}
    assert nearest_distance(target, text) == min(levenshtein(target, stretch) for stretch in stretches)


def test_letters_leave_case_blanks_and_marks_out() -> None:
    assert letters("It's ＯＫ, 2 go!") == "itsok2go"


def test_text_is_read_in_a_picture() -> None:
    pytest.importorskip("rapidocr_onnxruntime", exc_type=ImportError)  # it also wants libgl1 of the system
    picture = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(picture).text((20, 24), "HELLO WORLD", "black", ImageFont.load_default(40))
    assert score({"name": "ocr_text"}, picture, 'A sign that says "Hello world"') == 1
    assert score({"name": "ocr_text", "text": "hello there"}, picture) < 0.8
    assert score({"name": "ocr_text", "text": "zzz"}, picture) == 0
    assert score({"name": "ocr_text", "text": "hello"}, Image.new("RGB", (64, 64), "white")) == 0
    with pytest.raises(RewardError, match="knows no text to look for"):
        score({"name": "ocr_text"}, picture, "A sign")
