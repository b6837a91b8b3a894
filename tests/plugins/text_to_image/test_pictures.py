from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from polyalign.errors import MediaError, RecordError
from polyalign.policies.pipelines.collator import caption_of, media_ref
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.records.views import VIEWS
from polyalign_text_to_image.fixture import drawings
from polyalign_text_to_image.pictures import open_picture, to_pixels


@pytest.fixture
def sample() -> Sample:
    records, media = drawings()
    return VIEWS["pairs"](records[0], media)[0].samples[0]


def test_caption_is_the_last_user_message() -> None:
    prompt = tuple(Message(role=role, parts=text) for role, text in (("user", "a"), ("assistant", "b"), ("user", "c")))
    assert caption_of(prompt) == "c"
    with pytest.raises(RecordError, match="no user message"):
        caption_of(prompt[1:2])


def test_picture_is_decoded_by_the_registered_modality(sample: Sample) -> None:
    picture = open_picture(sample)
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    assert picture.getpixel((16, 16)) == (255, 0, 0) and picture.getpixel((0, 0)) == (255, 255, 255)


def test_damaged_picture_names_the_sample(sample: Sample) -> None:
    damaged = sample.media.add(b"\x89PNG\r\n\x1a\nnothing", "image", "image/png")
    with pytest.raises(MediaError, match="sample 'pair-red#0'"):
        open_picture(replace(sample, response=(MediaPart(media=damaged),)))


def test_a_response_that_is_not_one_picture_is_refused(sample: Sample) -> None:
    with pytest.raises(RecordError, match=r"is \[text\], but .* exactly one image"):
        media_ref(replace(sample, response=(TextPart(text="a disc"),)), "image")
    with pytest.raises(RecordError, match=r"is \[image, image\]"):
        media_ref(replace(sample, response=sample.response * 2), "image")
    with pytest.raises(MediaError, match="no media store"):
        open_picture(replace(sample, media=None))


def test_square_pictures_of_the_right_size_are_only_rescaled_in_value() -> None:
    picture = Image.new("RGB", (2, 2), (255, 0, 51))
    expected = torch.tensor([1.0, -1.0, -0.6])[:, None, None].expand(3, 2, 2)
    torch.testing.assert_close(to_pixels(picture, 2), expected)


def test_the_middle_of_a_wide_picture_is_kept_unstretched() -> None:
    """Left third black, middle white, right black, 24 x 8: the middle 8 x 8 is white."""
    picture = Image.new("RGB", (24, 8), "black")
    picture.paste("white", (8, 0, 16, 8))
    assert (to_pixels(picture, 8) == 1).all()
    assert to_pixels(picture, 4).shape == (3, 4, 4)
    assert to_pixels(Image.new("RGB", (5, 9)), 16).shape == (3, 16, 16)
