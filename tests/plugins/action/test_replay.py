"""Episodes as moving pictures: played again exactly, without a display, or said why not."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import polyalign
from polyalign.errors import MediaError
from polyalign_action import replay
from polyalign_action.fixture import scripted
from polyalign_action.replay import FRAMES, SIDE, clip_of
from polyalign_action.trajectory import MIME, Trajectory, TrajectoryModality

pytest.importorskip("pygame")
Script = Callable[[Tensor], Tensor]
PLAYED: dict[str, Script] = {
    "CartPole-v1": lambda seen: (seen[:, 2] + seen[:, 3] > 0).long(),
    "Pendulum-v1": lambda seen: torch.full((1, 1), 3.0),  # beyond its bound, which the environment clips
    "Reach/Arm": lambda seen: torch.full((1, 2), 0.5),
    "BabyAI-GoToLocal-v0": lambda seen: torch.full((1,), 2),
}


def frames_of(clip: bytes) -> list[np.ndarray]:
    picture = Image.open(io.BytesIO(clip))
    found = []
    for number in range(getattr(picture, "n_frames", 1)):
        picture.seek(number)
        found.append(np.asarray(picture.convert("RGB"), np.int16))
    return found


def preview(trajectory: Trajectory) -> str:
    codec = TrajectoryModality()
    return codec.preview_html(codec.encode(trajectory, MIME), MIME)


@pytest.mark.parametrize("name", PLAYED)
def test_an_episode_is_shown_from_its_start_to_its_end(name: str) -> None:
    if name.startswith("BabyAI"):
        pytest.importorskip("minigrid")
    clip = clip_of(scripted(name, PLAYED[name], 3, 20))
    assert clip[:4] == b"RIFF" and clip[8:12] == b"WEBP" and len(clip) < 100_000
    frames = frames_of(clip)
    assert 1 < len(frames) <= 21 and SIDE / 2 < max(frames[0].shape) <= SIDE  # equal frames that follow each other are one
    assert (np.abs(frames[0] - frames[-1]) > 50).any()


def test_the_last_frame_is_what_the_environment_draws_where_the_episode_ended() -> None:
    """Reach draws the hand as a black disc: in the last frame it lies where the last observation says."""
    episode = scripted("Reach/Cursor", lambda seen: torch.tensor([[1.0, 0.5]]), 5, 6)
    last = frames_of(clip_of(episode))[-1]
    rows, columns = np.nonzero((last < 60).all(-1))
    side = last.shape[0]
    x, y = 2 * (columns.mean() + 0.5) / side - 1, 1 - 2 * (rows.mean() + 0.5) / side
    np.testing.assert_allclose([x, y], episode.observations[-1][:2], atol=0.06)  # a pixel of the world is 2 / 32 wide


def test_long_episodes_are_thinned_out() -> None:
    turned = scripted("Pendulum-v1", PLAYED["Pendulum-v1"], 0, 150)
    assert len(frames_of(clip_of(turned))) <= FRAMES
    with pytest.raises(MediaError, match="more than are played again"):
        clip_of(replace(turned, rewards=np.zeros(replay.LONGEST + 1)))


def test_a_preview_moves_and_keeps_its_drawing() -> None:
    shown = preview(scripted("CartPole-v1", PLAYED["CartPole-v1"], 3, 20))
    assert shown.count("<polyline") == 4 and shown.count("data:image/webp;base64,") == 1 and "No moving picture" not in shown


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 4}, "elsewhere at step 0"),
        ({"environment": "antigravity:CartPole-v1"}, "would import a module"),
        ({"environment": "NoSuchWorld-v0"}, "cannot be drawn here"),
        ({"environment": "Acrobot-v1"}, "cannot be played again|elsewhere"),
    ],
)
def test_what_cannot_be_shown_says_why_and_stays_a_drawing(change: dict[str, object], reason: str) -> None:
    """An id that names a module, which gymnasium would import, may stand in anybody's file: nothing is imported for it."""
    shown = preview(replace(scripted("CartPole-v1", PLAYED["CartPole-v1"], 3, 20), **change))  # type: ignore[arg-type]
    assert shown.count("<polyline") == 4 and "<img" not in shown and re.search(f"No moving picture: .*({reason})", shown)
    assert "antigravity" not in sys.modules


def test_a_renderer_that_fails_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MuJoCo's does on a machine without OpenGL: whatever it raises ends in the caption."""
    opened = []

    class Blind:
        def reset(self, seed: int) -> None:
            opened.append(seed)

        def render(self) -> None:
            raise OSError("no OpenGL here")

    monkeypatch.setattr(replay, "entry", lambda name: lambda name, render_mode: Blind())
    replay._stage.cache_clear()
    try:
        episode = replace(scripted("CartPole-v1", PLAYED["CartPole-v1"], 3, 5), environment="Blind-v0")
        for _ in range(2):
            assert "Blind-v0 cannot be drawn here: OSError: no OpenGL here" in preview(episode)
        assert opened == [0]
    finally:
        replay._stage.cache_clear()


def test_no_display_is_asked_for() -> None:
    """In a process of its own, without DISPLAY, pygame's driver is the one that draws nowhere."""
    code = (
        "from polyalign_action import replay; stage = replay._stage('CartPole-v1'); import pygame;"
        "assert not isinstance(stage, str), stage; pygame.display.init(); print(pygame.display.get_driver())"
    )
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.split()[-1] == "dummy"


def test_a_report_shows_behaviour_before_and_after(tmp_path: Path) -> None:
    run = polyalign.train(
        "action/dpo-cartpole",
        out=tmp_path / "run",
        training={"steps": 1, "batch_size": 2, "eval_every": None},
        report={"prompts": 2},
    )
    page = (run.folder / "report.html").read_text()
    assert page.count("data:image/webp;base64,") == 4 and "No moving picture" not in page
    stored = [path for path in run.folder.rglob("*") if path.is_file() and path.read_bytes()[8:12] == b"WEBP"]
    assert not stored  # frames are in the page alone
