"""Which colours a thing drawn on white has: counted by hand on small pictures."""

from __future__ import annotations

import numpy as np
import pytest

from polyalign_image.foreground import foreground_shares, main_colours

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def red_square() -> np.ndarray:
    """10 x 10 pixels of red in a white picture of 20 x 20. Its outermost pixels touch the background: 8 x 8 = 64 count."""
    picture = np.full((20, 20, 3), 255, np.uint8)
    picture[5:15, 5:15] = RED
    return picture


def painted(count: int, colour: tuple[int, int, int] = BLUE) -> np.ndarray:
    """The red square with so many of its 64 pixels in another colour."""
    picture = red_square()
    rows, columns = np.unravel_index(np.arange(count), (8, 8))
    picture[6 + rows, 6 + columns] = colour
    return picture


def test_background_and_the_pixels_next_to_it_do_not_count() -> None:
    picture = red_square()
    picture[5, 5:15] = picture[14, 5:15] = (255, 128, 128)  # the blend with white along an edge
    shares = foreground_shares(picture)
    assert shares["red"] == 1 and sum(shares.values()) == 1


def test_white_inside_a_thing_is_its_colour() -> None:
    """16 of 64 pixels, and they do not reach the border."""
    picture = red_square()
    picture[8:12, 8:12] = WHITE
    assert foreground_shares(picture)["white"] == pytest.approx(16 / 64)
    assert main_colours(picture) == (("red", "white"), ())


def test_white_that_reaches_the_border_round_a_corner_is_background() -> None:
    """A slit from the right edge, three pixels high, then two up: all of it and its neighbours drop out."""
    picture = red_square()
    picture[9:12, 10:15] = WHITE
    picture[7:9, 10] = WHITE
    assert foreground_shares(picture)["white"] == 0


def test_background_does_not_leak_through_a_diagonal_gap() -> None:
    """White that meets the outside at a corner only is inside."""
    picture = red_square()
    picture[5, 5] = WHITE  # outside: joined to the background by its sides
    picture[6, 6] = picture[7, 7] = WHITE  # joined to it, and to each other, by corners alone
    assert foreground_shares(picture)["white"] == pytest.approx(1 / 63)  # (6, 6) touches the background now and drops out


@pytest.mark.parametrize(
    ("count", "main", "others"),
    [
        (3, ("red",), ()),  # 4.7 %
        (4, ("red",), ("blue",)),  # 6.3 %
        (12, ("red",), ("blue",)),  # 18.8 %
        (13, ("red", "blue"), ()),  # 20.3 %
        (40, ("blue", "red"), ()),  # 62.5 %
    ],
)
def test_a_second_colour_needs_a_fifth_and_any_a_twentieth(count: int, main: tuple[str, ...], others: tuple[str, ...]) -> None:
    assert main_colours(painted(count)) == (main, others)


def test_others_stand_by_falling_share() -> None:
    """Of 64: 40 red, 16 blue, 3 green and 5 black."""
    picture = painted(24)
    picture[6, 6:9] = (0, 200, 0)
    picture[6, 9:14] = (0, 0, 0)
    assert main_colours(picture) == (("red", "blue"), ("black",))


def test_a_picture_of_nothing_but_white_is_white() -> None:
    assert main_colours(np.full((8, 8, 3), 255, np.uint8)) == (("white",), ())
