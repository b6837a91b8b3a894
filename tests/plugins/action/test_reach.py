"""`Reach`: one task for bodies that are moved in different ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from polyalign.errors import ConfigError
from polyalign_action.environments import open_environment
from polyalign_action.reach import BODIES, COLOURS, SPEED, VIEW
from polyalign_action.reach_demonstrations import demonstrated

each_body = pytest.mark.parametrize("body", BODIES)


@each_body
def test_the_expert_arrives_and_one_led_astray_earns_less(body: str) -> None:
    """Unless the mission's disc lies on the way to the other: then both arrive, by the same steps."""
    less = 0
    for seed in range(10):
        (_, right), (_, astray) = demonstrated(body, seed), demonstrated(body, seed, astray=1)
        assert right.success and right.terminated and right.discounted() >= astray.discounted()
        assert astray.success == (right.discounted() == astray.discounted())
        less += right.discounted() > astray.discounted()
    assert less >= 8


@each_body
def test_it_is_an_environment_as_gymnasium_defines_one(body: str) -> None:
    check_env(open_environment(f"Reach/{body}").unwrapped, skip_render_check=True)


@each_body
def test_a_command_moves_the_hand_as_asked(body: str) -> None:
    """A boat at rest has 0.75 of its speed. An arm's joints follow the first direction: off by a quarter at most."""
    for seed in range(5):
        inner: Any = open_environment(f"Reach/{body}").unwrapped
        inner.reset(seed=seed)
        before, asked = inner.body.hand, SPEED * np.array([0.0, 0.5 if body == "Boat" else 1.0])
        inner.body.move(inner.body.command(asked))
        np.testing.assert_allclose(inner.body.hand - before, asked, atol=(0.25 if body == "Arm" else 0.01) * SPEED)


def test_all_bodies_see_the_same_scene_for_a_seed() -> None:
    first = {body: demonstrated(body, 3) for body in BODIES}
    assert len({task.instruction for task, _ in first.values()}) == 1
    for _, episode in first.values():
        np.testing.assert_allclose(episode.observations[0, :2], first["Cursor"][1].observations[0, :2], atol=1e-5)
        np.testing.assert_allclose(episode.observations[0, 4:VIEW], first["Cursor"][1].observations[0, 4:VIEW])


def test_the_picture_shows_the_discs_where_they_are() -> None:
    inner: Any = open_environment("Reach/Arm").unwrapped
    inner.reset(seed=1)
    picture = inner.render(side=64)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    for number, disc in enumerate(inner.discs):
        column, row = int((disc[0] + 1) * 32), int((1 - disc[1]) * 32)
        assert picture[row, column, number] == 255 and picture[row, column].sum() == 255, COLOURS[number]


def test_an_unknown_body_is_refused() -> None:
    with pytest.raises(ConfigError, match="Reach/Octopus"):
        open_environment("Reach/Octopus")
