"""`Reach/BODY`: one task for bodies that are moved in different ways. Go to the disc whose colour the mission names.

Everybody's observation begins with the same ten numbers, the view: where the hand is, where the rest of the body is, and where
the three discs are. A body's own senses follow. A seed decides scene and mission.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np

COLOURS = ("red", "green", "blue")
WORDINGS = ("go to the {} disc", "reach for the {} disc", "the {} one, please")
VIEW = 10  # numbers that everybody sees alike
RADIUS, SPEED, NEAR = 0.6, 0.1, 0.08  # of the scene; of a hand, per step; of a disc
STEPS = 30
SPOTS = ((0.0, 0.4), (-0.4, -0.2), (0.4, -0.2))  # where discs lie; hands start a whole number of steps away


class Body(ABC):
    """How a hand is moved. ``action_space``: what it is told; ``senses``: how many numbers only this body observes."""

    action_space: ClassVar[gymnasium.spaces.Space[Any]]
    senses: ClassVar[int] = 0
    hand: np.ndarray  # [2]

    def place(self, hand: np.ndarray) -> None:
        """Put the hand at rest there."""
        self.hand = hand

    @property
    def trunk(self) -> np.ndarray:
        """Return where the rest of the body is, ``[2]``."""
        return self.hand

    def sensed(self) -> np.ndarray:
        return np.zeros(0)

    @abstractmethod
    def move(self, action: Any) -> None:
        """Do what the action says for one step."""

    @abstractmethod
    def command(self, velocity: np.ndarray) -> Any:
        """Return the action that moves the hand by ``velocity`` ``[2]`` in one step, as nearly as it can."""


def _box(size: int) -> gymnasium.spaces.Box:
    return gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)


class Cursor(Body):
    """Told where to move: velocity control."""

    action_space = _box(2)

    def move(self, action: Any) -> None:
        self.hand = self.hand + SPEED * action

    def command(self, velocity: np.ndarray) -> Any:
        return velocity / SPEED


class Boat(Body):
    """Told how to push: force control, against a drag that takes half of its velocity each step. Senses its velocity."""

    action_space = _box(2)
    senses = 2
    force: ClassVar[float] = 0.75 * SPEED
    velocity: np.ndarray

    @property
    def trunk(self) -> np.ndarray:
        return self.hand + np.array([0.0, -0.15])

    def place(self, hand: np.ndarray) -> None:
        self.hand, self.velocity = hand, np.zeros(2)

    def sensed(self) -> np.ndarray:
        return self.velocity / SPEED

    def move(self, action: Any) -> None:
        self.velocity = self.velocity / 2 + self.force * action
        self.hand = self.hand + self.velocity

    def command(self, velocity: np.ndarray) -> Any:
        return np.clip((velocity - self.velocity / 2) / self.force, -1, 1)


class Arm(Body):
    """Two links of length 1 from a fixed shoulder, told how fast to turn its joints. Senses their angles, as sine and cosine."""

    action_space = _box(2)
    senses = 4
    shoulder: ClassVar[np.ndarray] = np.array([0.0, -1.25])
    turn: ClassVar[float] = 0.2  # radians per step
    angles: np.ndarray  # [2]

    def place(self, hand: np.ndarray) -> None:
        reach = hand - self.shoulder
        bend = math.acos(np.clip((reach @ reach) / 2 - 1, -1, 1))
        self.angles = np.array([math.atan2(reach[1], reach[0]) - bend / 2, bend])
        self.hand = self._points()[1]

    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        first, second = self.angles[0], self.angles.sum()
        elbow = self.shoulder + _direction(first)
        return elbow, elbow + _direction(second)

    @property
    def trunk(self) -> np.ndarray:
        return self._points()[0]

    def sensed(self) -> np.ndarray:
        return np.concatenate([np.sin(self.angles), np.cos(self.angles)])

    def move(self, action: Any) -> None:
        self.angles = self.angles + self.turn * action
        self.hand = self._points()[1]

    def command(self, velocity: np.ndarray) -> Any:
        outer = self.hand - self.trunk
        whole = self.hand - self.shoulder
        jacobian = np.array([[-whole[1], -outer[1]], [whole[0], outer[0]]])
        damped = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 1e-3 * np.eye(2))
        return np.clip(damped @ velocity / self.turn, -1, 1)


class Wheels(Body):
    """Three omnidirectional wheels, told how fast each one turns."""

    action_space = _box(3)
    axes: ClassVar[np.ndarray] = np.array([[math.cos(a), math.sin(a)] for a in np.radians([20.0, 140.0, 260.0])])

    @property
    def trunk(self) -> np.ndarray:
        return self.hand + np.array([-0.1, 0.1])

    def move(self, action: Any) -> None:
        self.hand = self.hand + SPEED * np.linalg.pinv(self.axes) @ action

    def command(self, velocity: np.ndarray) -> Any:
        return self.axes @ velocity / SPEED


class Keys(Body):
    """Told one of five things: stay, right, up, left, down."""

    action_space = gymnasium.spaces.Discrete(5)
    moves: ClassVar[np.ndarray] = np.array([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1]])

    def move(self, action: Any) -> None:
        self.hand = self.hand + SPEED * self.moves[action]

    def command(self, velocity: np.ndarray) -> Any:
        return int(np.argmin(np.square(SPEED * self.moves - velocity).sum(-1)))


BODIES: dict[str, type[Body]] = {body.__name__: body for body in (Cursor, Boat, Arm, Wheels, Keys)}


class Reach(gymnasium.Env[np.ndarray, Any]):
    """Pays the distance gained, and 1 on arrival, which ends the episode."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, body: str, render_mode: str | None = None) -> None:
        self.body, self.render_mode = BODIES[body](), render_mode
        self.action_space = self.body.action_space
        self.observation_space = gymnasium.spaces.Box(-3.0, 3.0, (VIEW + self.body.senses,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        draw = self.np_random
        self.discs = [np.array(SPOTS[number]) for number in draw.permutation(len(SPOTS))]
        hand = _within(draw)
        while min(np.linalg.norm(hand - disc) for disc in self.discs) < 2 * NEAR:
            hand = _within(draw)
        self.target = int(draw.integers(len(COLOURS)))
        self.mission = WORDINGS[int(draw.integers(len(WORDINGS)))].format(COLOURS[self.target])
        self.body.place(hand)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self._distance()
        self.body.move(action)
        after = self._distance()
        arrived = after < NEAR
        return self._seen(), float(before - after + arrived), arrived, False, {"success": arrived}

    def expert(self, target: int | None = None) -> Any:
        """Return the action that goes to a disc, by default the one that the mission names: sideways at full speed until the
        hand is above or below it, then straight up or down."""
        way = self.discs[self.target if target is None else target] - self.body.hand
        axis = 0 if abs(way[0]) > NEAR / 2 else 1
        return self.body.command(SPEED * np.sign(way[axis]) * np.eye(2)[axis])

    def steps_to(self, target: int) -> int:
        """Return about how many steps the way to a disc takes."""
        return math.ceil(float(np.abs(self.discs[target] - self.body.hand).sum()) / SPEED)

    def render(self, side: int = 32) -> np.ndarray:
        """Return the scene as pixels ``[side, side, 3]``: white ground, the discs, a black hand, and what joins it to the rest of
        the body grey."""
        centres = (np.arange(side) + 0.5) / side * 2 - 1
        grid = np.stack(np.meshgrid(centres, -centres), -1)  # [side, side, 2]
        picture = np.full((side, side, 3), 255, np.uint8)
        for part in np.linspace(0, 1, side):
            at = part * self.body.trunk + (1 - part) * self.body.hand
            picture[np.linalg.norm(grid - at, axis=-1) < 0.04] = 128
        for number, disc in enumerate(self.discs):
            picture[np.linalg.norm(grid - disc, axis=-1) < 0.1] = [255 * (number == channel) for channel in range(3)]
        picture[np.linalg.norm(grid - self.body.hand, axis=-1) < 0.08] = 0
        return picture

    def _distance(self) -> float:
        return float(np.linalg.norm(self.discs[self.target] - self.body.hand))

    def _seen(self) -> np.ndarray:
        return np.concatenate([self.body.hand, self.body.trunk, *self.discs, self.body.sensed()]).astype(np.float32)


def _direction(angle: float) -> np.ndarray:
    return np.array([math.cos(angle), math.sin(angle)])


def _within(draw: np.random.Generator) -> np.ndarray:
    """Return a crossing of the grid whose meshes are a step wide, within the scene, ``[2]``."""
    angle, radius = draw.uniform(0, 2 * math.pi), RADIUS * math.sqrt(draw.uniform())
    return SPEED * np.round(radius * _direction(angle) / SPEED)


def reach_world(name: str, **settings: Any) -> gymnasium.Env:
    """Open ``Reach/BODY``; the bodies are Cursor, Boat, Arm, Wheels and Keys."""
    body = name.partition("/")[2]
    if name not in gymnasium.registry and body in BODIES:
        gymnasium.register(name, entry_point=Reach, kwargs={"body": body}, max_episode_steps=STEPS, disable_env_checker=True)
    return gymnasium.make(name, **settings)
