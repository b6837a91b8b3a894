"""Trajectories as moving pictures: the environment is played again by the actions of the episode, and rendered.

Nothing but the trajectory is needed, so records hold no frames. No window is opened.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from polyalign.errors import MediaError
from polyalign_action.worlds import entry

if TYPE_CHECKING:
    from polyalign_action.trajectory import Trajectory

FRAMES, SIDE, LONGEST = 48, 160, 2_000  # of a clip; its longer side in pixels; steps that are played again at most
MILLISECONDS, AT_THE_END = 80, 900  # that a frame is shown
QUIET = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}  # pygame draws for gymnasium
PLAIN = re.compile(r"[\w./-]+")  # an id: "MODULE:ID" would import a module that a file names


def clip_of(trajectory: Trajectory) -> bytes:
    """Return the episode as an animated WebP of at most ``FRAMES`` frames.

    Raises `MediaError` with the reason where the environment cannot be opened or drawn here, or does something else than it did.
    """
    if len(trajectory) > LONGEST:
        raise MediaError(f"{len(trajectory)} steps are more than are played again for a picture, {LONGEST}")
    stage = _stage(trajectory.environment)
    if isinstance(stage, str):
        raise MediaError(stage)
    try:
        return _animation(_frames(stage, trajectory))
    except MediaError:
        raise
    except Exception as error:  # environments and their renderers raise what they like; a page must not fail for it
        raise MediaError(f"{trajectory.environment} cannot be played again: {error}") from error


@lru_cache(maxsize=4)
def _stage(name: str) -> Any:
    """Return an environment that has shown that it can be drawn, or why there is none; kept, as opening takes seconds."""
    if not PLAIN.fullmatch(name):
        return f"{name!r} is no environment that a picture is drawn of: it would import a module"
    for setting, value in QUIET.items():
        os.environ.setdefault(setting, value)
    try:
        with warnings.catch_warnings(action="ignore"):  # GLFW warns of what then is raised, and so is told
            environment = entry(name)(name, render_mode="rgb_array")
            environment.reset(seed=0)
            picture = environment.render()
    except Exception as error:  # ImportError, OpenGL's own errors, gymnasium's: whatever a machine without a renderer gives
        return f"{name} cannot be drawn here: {type(error).__name__}: {error}"
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        return f"{name} draws no pictures"
    return environment


def _frames(environment: Any, trajectory: Trajectory) -> list[np.ndarray]:
    """Play the actions again; return pictures ``[H, W, 3]`` of steps spread evenly over the episode, first and last included."""
    shown = set(np.linspace(0, len(trajectory), min(FRAMES, len(trajectory) + 1)).round().astype(int).tolist())
    space = environment.action_space
    seen, _ = environment.reset(seed=trajectory.seed)
    frames = []
    for step in range(len(trajectory) + 1):
        if not np.allclose(np.asarray(seen, np.float32).reshape(-1), trajectory.observations[step], rtol=1e-3, atol=1e-3):
            raise MediaError(f"played again, {trajectory.environment} is elsewhere at step {step}; its version may be another")
        if step in shown:
            frames.append(environment.render())
        if step < len(trajectory):
            action = trajectory.actions[step]
            given = int(action) if action.ndim == 0 else np.clip(action, space.low, space.high).astype(np.float32)
            seen = environment.step(given)[0]
    return frames


def _animation(frames: list[np.ndarray]) -> bytes:
    from PIL import Image

    height, width = frames[0].shape[:2]
    scale = SIDE / max(height, width)
    size, filtering = (round(scale * width), round(scale * height)), Image.Resampling.LANCZOS
    if scale > 1:  # small worlds keep their pixels sharp
        size, filtering = (int(scale) * width, int(scale) * height), Image.Resampling.NEAREST
    pictures = [Image.fromarray(frame).resize(size, filtering) for frame in frames]
    buffer = io.BytesIO()
    durations = [MILLISECONDS] * (len(pictures) - 1) + [AT_THE_END]
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=60)
    return buffer.getvalue()
