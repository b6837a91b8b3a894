"""The colour rule: names of colours in words and in pixels, and the reward made of both."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageColor
from pydantic import ValidationError

from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign_image.colours import ColourRule
from polyalign_image.config import ColourRuleConfig
from polyalign_image.palette import PALETTE, _hue, colour_shares, colours_named, name_pixels


def stripes(**shares: int) -> Image.Image:
    """A picture of ten columns, so many of each CSS colour."""
    columns = [ImageColor.getrgb(colour) for colour, count in shares.items() for _ in range(count)]
    assert len(columns) == 10
    return Image.fromarray(np.array([columns] * 4, np.uint8))


def score(caption: str, picture: Image.Image, **options: object) -> float:
    (value,) = ColourRule(ColourRuleConfig(**options)).score([Judged((Message(role="user", parts=caption),), picture)])
    return value


@pytest.mark.parametrize(
    ("css", "name"),
    [
        ("black", "black"), ("grey", "grey"), ("silver", "grey"), ("white", "white"), ("snow", "white"),
        ("red", "red"), ("crimson", "red"), ("darkred", "red"), ("orange", "orange"), ("saddlebrown", "brown"),
        ("yellow", "yellow"), ("gold", "yellow"), ("green", "green"), ("lime", "green"), ("limegreen", "green"),
        ("cyan", "cyan"), ("turquoise", "cyan"), ("blue", "blue"), ("navy", "blue"), ("royalblue", "blue"),
        ("deepskyblue", "blue"),
        ("purple", "purple"), ("indigo", "purple"), ("blueviolet", "purple"),
        ("magenta", "pink"), ("hotpink", "pink"), ("pink", "pink"), ("deeppink", "pink"),
    ],
)  # fmt: skip
def test_css_colours_get_the_name_a_person_would_give(css: str, name: str) -> None:
    pixel = np.array([[ImageColor.getrgb(css)]], np.uint8)
    assert PALETTE[name_pixels(pixel)[0, 0]] == name


def test_hue_agrees_with_the_standard_library() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (500, 3))
    rgb[:20] = rgb[:20, :1]  # greys
    pixels = rgb / 255
    hue = _hue(pixels, pixels.max(-1), pixels.max(-1) - pixels.min(-1))
    expected = [360 * colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels]
    np.testing.assert_allclose(hue, expected, atol=1e-9)


def test_every_pixel_has_one_colour() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    shares = colour_shares(rgb)
    assert sum(shares.values()) == pytest.approx(1)
    assert tuple(shares) == PALETTE


@pytest.mark.parametrize(
    ("pixel", "name"),
    [
        ("#ffcc4d", "yellow"),  # faces and hands
        ("#ffac33", "orange"),  # the orange heart
        ("#31373d", "black"), ("#292f33", "black"),  # the black cat, the telephone
        ("#66757f", "grey"), ("#99aab5", "grey"),  # the bat, the shopping cart
        ("#c1694f", "brown"), ("#664500", "brown"), ("#662113", "brown"),  # wood, eyes of faces, bears
        ("#dd2e44", "red"), ("#be1931", "red"), ("#226699", "blue"), ("#f5f8fa", "white"),
    ],
)  # fmt: skip
def test_flat_colours_of_real_emoji_get_the_name_a_person_would_give(pixel: str, name: str) -> None:
    """The colours that cover most of Twemoji's pictures, and what they are used for."""
    assert PALETTE[name_pixels(np.array([[ImageColor.getrgb(pixel)]], np.uint8))[0, 0]] == name


@pytest.mark.parametrize(
    ("text", "colours"),
    [
        ("A Red Rose", ("red",)),
        ("a red-gold fish, more red than gold", ("red", "yellow")),
        ("grey or gray", ("grey",)),
        ("a bored redhead in Greenland", ()),  # parts of words name nothing
    ],
)
def test_colour_words(text: str, colours: tuple[str, ...]) -> None:
    assert colours_named(text) == colours


def test_one_colour_scores_its_share_of_what_is_not_background() -> None:
    """3 red columns of 5 that are not white."""
    picture = stripes(red=3, blue=2, white=5)
    assert score("a red rose", picture) == pytest.approx(0.6)
    assert score("a red rose", picture, ignore_white=False) == pytest.approx(0.3)
    assert score("a green rose", picture) == 0


def test_white_counts_when_asked_for() -> None:
    assert score("a white rose", stripes(red=3, blue=2, white=5)) == pytest.approx(0.5)


def test_each_of_n_colours_counts_up_to_its_nth() -> None:
    """Half red, half blue is perfect; 8 to 2 gives 0.5 + 0.2; one colour alone 0.5."""
    assert score("red and blue", stripes(red=5, blue=5)) == pytest.approx(1)
    assert score("red and blue", stripes(red=8, blue=2)) == pytest.approx(0.7)
    assert score("red and blue", stripes(red=10)) == pytest.approx(0.5)


def test_a_configured_colour_is_asked_of_every_prompt() -> None:
    assert score("a red rose", stripes(red=3, blue=7), colour="blue") == pytest.approx(0.7)


def test_no_colour_named_and_nothing_but_background() -> None:
    assert score("a rose", stripes(red=10)) == 0.5
    assert score("a rose", stripes(red=10), no_colour_named=0.0) == 0
    assert score("a red rose", stripes(white=10)) == 0


def test_an_unknown_colour_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="unknown colour 'mauve'; known: black, grey"):
        ColourRuleConfig(colour="mauve")
