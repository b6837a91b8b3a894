"""A trajectory: what an agent saw, did and was paid in one episode. Its codec is safetensors; nothing is unpickled."""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from polyalign.errors import MediaError
from polyalign.records.modality import Modality

if TYPE_CHECKING:
    import numpy as np

MIME = "application/x-trajectory+safetensors"
METADATA = "polyalign_trajectory"
LONGEST_HEADER = 10_000  # bytes
LONGEST_REASON = 200  # characters, of why there is no moving picture
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One episode of T >= 1 steps.

    ``observations`` ``[T + 1, O]`` float32, flattened; the last one follows the last action. ``actions``: ``[T]`` int64 as the
    environment counts them, or ``[T, A]`` float32 before the environment clips them. ``rewards`` ``[T]`` float32.
    ``terminated``: the episode came to its own end; otherwise it was cut by a time limit. ``success``: whether the task was
    solved, where the environment says so; None where it does not.

    ``paid``: how many steps' rewards fall due at each decision of the policy that played it. None: a decision is a step; empty:
    nobody can tell. It is not stored.
    """

    environment: str
    seed: int
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    success: bool | None = None
    paid: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def reported(self) -> dict[str, bool]:
        """Return what the environment said of the episode, for rewards such as ``success``."""
        return {} if self.success is None else {"success": self.success}

    def discounted(self, discount: float = 1.0) -> float:
        """Return the sum of rewards, step t's multiplied by ``discount ** t``."""
        return float(sum(float(reward) * discount**step for step, reward in enumerate(self.rewards)))


class TrajectoryModality(Modality):
    """Trajectories as safetensors with one metadata entry. Equal trajectories give equal bytes.

    Subclass and set ``longest`` to allow more steps.
    """

    name: ClassVar[str] = "trajectory"
    longest: ClassVar[int] = 1_000_000

    def sniff(self, data: bytes) -> str | None:
        return MIME if _header(data) is not None else None

    def decode(self, data: bytes) -> Trajectory:
        """Return the `Trajectory`. Raises `MediaError` for other or damaged bytes, unequal lengths and numbers not finite."""
        from safetensors.numpy import load

        self.cost(data)
        facts = json.loads(_required(data)["__metadata__"][METADATA])
        try:
            tensors = load(data)
            found = Trajectory(
                environment=str(facts["environment"]),
                seed=int(facts["seed"]),
                observations=tensors["observations"],
                actions=tensors["actions"],
                rewards=tensors["rewards"],
                terminated=bool(facts["terminated"]),
                success=facts.get("success"),
            )
        except Exception as error:  # safetensors raises its own kinds
            raise MediaError(f"damaged trajectory ({len(data)} bytes): {error}. Record the episode again.") from error
        return checked(found)

    def encode(self, medium: Any, mime: str) -> bytes:
        """Return the bytes of a `Trajectory`. Raises `MediaError` for another mime type or unequal lengths."""
        import numpy as np
        from safetensors.numpy import save

        if mime != MIME:
            raise MediaError(f"trajectories are not written as {mime!r}; expected {MIME}")
        trajectory = checked(medium)
        facts = {"environment": trajectory.environment, "seed": trajectory.seed, "terminated": trajectory.terminated}
        facts |= {} if trajectory.success is None else {"success": trajectory.success}
        tensors = {name: np.ascontiguousarray(getattr(trajectory, name)) for name in ("observations", "actions", "rewards")}
        # One entry only: safetensors writes several in an order that changes from process to process, and so would the hash.
        return save(tensors, metadata={METADATA: json.dumps(facts, sort_keys=True)})

    def cost(self, data: bytes) -> int:
        """Return the number of steps, read from the header."""
        try:
            steps = int(_required(data)["rewards"]["shape"][0])
        except (KeyError, IndexError, TypeError) as error:
            raise MediaError(f"damaged trajectory ({len(data)} bytes): its header names no rewards") from error
        if steps > self.longest:
            raise MediaError(f"trajectory of {steps} steps is too long; the limit is {self.longest}. Cut it.")
        return steps

    def preview_html(self, data: bytes, mime: str) -> str:
        """Return what was done as an animation, if the environment can be drawn here, and the observations over time as a line
        drawing, a colour each; or, for damaged bytes, the reason. Playing the episode again needs no display."""
        try:
            shown = self.decode(data)
        except MediaError as error:
            return f'<span class="broken">{html.escape(str(error))}</span>'
        values = shown.observations
        low, spread = values.min(0), values.max(0) - values.min(0)
        scaled = (values - low) / (spread + (spread == 0))
        lines = []
        for column in range(min(values.shape[1], len(COLOURS))):
            points = " ".join(f"{300 * t / len(shown):.1f},{60 - 58 * y:.1f}" for t, y in enumerate(scaled[:, column]))
            lines.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[column]}"/>')
        end = {True: "solved", False: "not solved", None: "ended" if shown.terminated else "cut"}[shown.success]
        words = f"{shown.environment}, seed {shown.seed}: {len(shown)} steps, {end}, return {shown.discounted():g}"
        drawing = f'<svg width="300" height="62" viewBox="0 0 300 62">{"".join(lines)}</svg>'
        moving, why = _moving(shown)
        return f"<figure>{moving}{drawing}<figcaption>{html.escape(words)}{why}</figcaption></figure>"


def _moving(trajectory: Trajectory) -> tuple[str, str]:
    """Return the episode as an image element, or nothing and the reason, in HTML."""
    try:
        from polyalign_action.replay import clip_of

        clip = clip_of(trajectory)
    except (ImportError, MediaError) as error:  # data can be looked at without gymnasium or Pillow
        reason = " ".join(str(error).split())
        return "", f'<br><span class="muted">No moving picture: {html.escape(reason[:LONGEST_REASON])}</span>'
    return f'<img alt="the episode" src="data:image/webp;base64,{base64.b64encode(clip).decode()}"><br>', ""


def checked(trajectory: Trajectory) -> Trajectory:
    """Return the trajectory with its arrays in their types. Raises `MediaError` if lengths, ranks or numbers are wrong."""
    import numpy as np

    observations = np.asarray(trajectory.observations, np.float32)
    rewards = np.asarray(trajectory.rewards, np.float32)
    actions = np.asarray(trajectory.actions)
    actions = actions.astype(np.int64 if np.issubdtype(actions.dtype, np.integer) else np.float32)
    steps = len(rewards)
    right = rewards.ndim == 1 and observations.ndim == 2 and len(observations) == steps + 1 and len(actions) == steps
    if not right or steps == 0 or actions.ndim != (1 if actions.dtype == np.int64 else 2):
        raise MediaError(
            f"not a trajectory: observations {observations.shape}, actions {actions.shape} ({actions.dtype}), rewards "
            f"{rewards.shape}; expected [T + 1, O], [T] integers or [T, A] real numbers, and [T] with T at least 1"
        )
    if not (np.isfinite(observations).all() and np.isfinite(actions).all() and np.isfinite(rewards).all()):
        raise MediaError("the trajectory holds numbers that are not finite; cut the episode before they begin")
    return replace(trajectory, observations=observations, actions=actions, rewards=rewards)


def _header(data: bytes) -> dict[str, Any] | None:
    """Return the safetensors header if it says that this is a trajectory."""
    size = int.from_bytes(data[:8], "little")
    if not 2 < size <= LONGEST_HEADER or len(data) < 8 + size:
        return None
    try:
        header = json.loads(data[8 : 8 + size])
        return header if METADATA in header["__metadata__"] else None
    except (ValueError, KeyError, TypeError):
        return None


def _required(data: bytes) -> dict[str, Any]:
    header = _header(data)
    if header is None:
        raise MediaError(f"not a trajectory: {len(data)} bytes without its header; TrajectoryModality().encode writes one")
    return header
