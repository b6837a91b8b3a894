"""Where numbers go: metrics.jsonl always, other trackers by name."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyalign.errors import TrainingError
from polyalign.records.atomic import write_text


class Metrics:
    """Appends one JSON object per line to ``metrics.jsonl`` and forwards numbers to the trackers."""

    def __init__(
        self, folder: Path, trackers: Sequence[str], project: str, config: dict[str, Any], resume_step: int | None
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.rows = [row for row in read_metrics(self.path) if row["step"] <= resume_step] if resume_step is not None else []
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.trackers = [_tracker(name, folder, project, config) for name in trackers]

    def log(self, step: int, values: dict[str, float], **times: float) -> None:
        """Write one row. ``times`` are the fields that differ between equal runs (seconds, rates)."""
        row = {"step": step, **values, **{f"time/{name}": value for name, value in times.items()}}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for tracker in self.trackers:
            tracker.log(values, step=step)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; a last line cut off by a crash is left out, and so is all after it."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _tracker(name: str, folder: Path, project: str, config: dict[str, Any]) -> Any:
    """Return an accelerate tracker by name; its package is an optional extra."""
    from accelerate import tracking

    classes = {
        "tensorboard": lambda: tracking.TensorBoardTracker(project, logging_dir=str(folder / "tensorboard")),
        "wandb": lambda: tracking.WandBTracker(project, dir=str(folder), config=config),
        "trackio": lambda: tracking.TrackioTracker(project, config=config),
    }
    try:
        tracker = classes[name]()
        if hasattr(tracker, "start"):
            tracker.start()
    except ImportError as error:
        raise TrainingError(f"tracker {name!r} needs a package: pip install 'polyalign[{name}]'") from error
    return tracker
